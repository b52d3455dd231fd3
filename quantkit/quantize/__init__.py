"""Writes tensors into GGUF files in given types, and compares them with their source."""
