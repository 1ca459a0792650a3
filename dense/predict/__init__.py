"""Runs an exported file on pictures. Needs only NumPy, OpenCV, Pillow and ONNX Runtime.

Nothing here runs code from a model file: ONNX is data, and what a file says about itself is checked before it is used.
"""
