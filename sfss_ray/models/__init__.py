"""Networks, and the file a model is kept in."""
