"""The Hugging Face Hub: the only importer of huggingface_hub."""
