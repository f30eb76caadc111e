"""Stage 3: a search over hyperparameters that trains many students and finds the best config."""
