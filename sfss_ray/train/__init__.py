"""Stage 2: source model + images + masks -> student."""
