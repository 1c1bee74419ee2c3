"""Embedded data: WordNet, the small language model, and the scripts that made them. Any room may read it."""
