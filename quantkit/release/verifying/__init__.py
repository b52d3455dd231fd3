"""Verification of a release against its own claims, and against its source."""
