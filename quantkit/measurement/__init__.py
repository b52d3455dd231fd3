"""What is measured of a model before types are chosen: errors of tensors, and what they cost."""
