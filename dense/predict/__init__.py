"""From an exported file to results for a picture. Needs NumPy, OpenCV, Pillow and ONNX Runtime only.

Nothing here runs code from a model file: ONNX is data, and what a file says of itself is checked before it is believed.
"""
