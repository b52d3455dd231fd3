"""`quantkit build`: the stages in order, each skipped when its receipt is still valid."""
