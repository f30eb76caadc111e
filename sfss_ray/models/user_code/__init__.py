"""Networks that users bring, and sending their code to workers."""
