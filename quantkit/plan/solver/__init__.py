"""The mathematics of allocation: multiple-choice knapsacks and layer cuts; no tensors."""
