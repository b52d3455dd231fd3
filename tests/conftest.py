"""Puts tests/ on the import path, for the helpers beside this file."""
