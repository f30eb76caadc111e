"""Using a finished model: predictions of a folder of images, and its export to ONNX."""
