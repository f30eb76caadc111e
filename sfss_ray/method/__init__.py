"""The adaptation method in plain PyTorch: teacher, pseudo-labels, pairs and losses. No Ray, no disk."""
