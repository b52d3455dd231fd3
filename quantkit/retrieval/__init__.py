"""The retrieval check's text: needles, prompts, scoring, statistics. No model, no files."""
