"""A transformer model: loading, hookpoints, hooks, tokenising, batches, pooled responses. Knows no corpus, no run."""
