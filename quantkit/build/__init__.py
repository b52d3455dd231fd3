"""`quantkit build`: the stages in order, each skipped when its receipt says that it is done."""
