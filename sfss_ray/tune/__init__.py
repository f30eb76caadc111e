"""Stage 3: many students -> the best config."""
