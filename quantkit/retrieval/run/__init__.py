"""Runs the retrieval check on a model in a child process, or on a running llama-server."""
