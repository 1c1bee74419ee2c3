"""Readers that turn sources of concepts into labelled texts, and merging of corpora. Knows no model and no run."""
