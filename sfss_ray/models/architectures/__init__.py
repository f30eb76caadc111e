"""Network architectures, with the parameter names of their authors."""
