"""A checkpoint's tokenizer as GGUF metadata; `InputError` where llama.cpp has no such tokenizer."""
