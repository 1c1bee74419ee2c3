"""Locations here or on an object store, files written whole, Parquet, and untrusted JSON. Knows nothing of runs or models."""
