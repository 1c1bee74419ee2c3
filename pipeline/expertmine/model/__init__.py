"""A transformer model: loading, hookpoints, hooks, tokenising, batches, and pooled responses."""
