"""Locations here or on an object store, files written whole, Parquet, and untrusted JSON. No runs, no models."""
