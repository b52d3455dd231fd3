"""Pages, pictures and tables of what was measured; runs no model."""
