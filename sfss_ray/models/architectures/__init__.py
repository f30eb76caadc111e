"""Network architectures under the parameter names of their authors."""
