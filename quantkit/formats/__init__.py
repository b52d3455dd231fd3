"""Files and their layouts, without policy: safetensors, GGUF, imatrix, logits."""
