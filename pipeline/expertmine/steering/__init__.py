"""What do(c, k) sets, how it is applied to a model, and generation. Knows no run or store."""
