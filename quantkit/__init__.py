"""quantkit: one command turns a BF16 checkpoint into GGUF files that fit a given set of GPUs."""

__version__ = "0.1.0"
