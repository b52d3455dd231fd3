"""A model as a TensorSource: a checkpoint folder, a GGUF file, or headers of a repository."""
