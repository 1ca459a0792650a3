"""From an exported file to results for a picture. Needs NumPy, OpenCV and ONNX Runtime only."""
