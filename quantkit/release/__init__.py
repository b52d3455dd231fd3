"""A release: which files of a build are published, what goes with them, and how it is verified."""
