"""The model architectures; all raise `InputError` for a checkpoint that cannot be converted."""
