"""Use of a finished model: predictions of a folder of images, and export to ONNX."""
