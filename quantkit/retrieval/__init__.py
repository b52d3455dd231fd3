"""The retrieval check: its text, tasks, scoring and statistics; `run/` asks the questions."""
