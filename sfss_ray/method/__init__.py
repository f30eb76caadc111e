"""The adaptation method in plain torch: teacher, pseudo-labels, pairs, losses. No Ray, no disk."""
