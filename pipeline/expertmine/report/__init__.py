"""A run as one page to read, and as figures for a paper. Reads the run folder; never changes it."""
