"""Recipe, target and levels, each read from YAML."""
