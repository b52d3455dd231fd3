"""One sweep over the layers measures a model that need not fit in memory."""
