"""Experiment trackers: TensorBoard, MLflow, Weights & Biases, or the user's own."""
