"""A checkpoint's tokenizer as GGUF metadata."""
