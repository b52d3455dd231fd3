"""A release against its own claims, and against what it was made from."""
