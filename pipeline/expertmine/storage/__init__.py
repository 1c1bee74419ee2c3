"""Local and object-store locations, whole-file writes, Parquet tables, untrusted JSON. Knows no runs and no models."""
