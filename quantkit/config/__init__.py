"""What a person chooses: recipe, target and levels, each read from YAML."""
