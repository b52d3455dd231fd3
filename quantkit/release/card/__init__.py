"""The model card of a release: what it says, and how."""
