"""What is measured of a model before types are chosen: importance, errors and their costs."""
