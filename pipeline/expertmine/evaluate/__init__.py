"""Measure what steering does: success, fluency, side effects. Reads the run folder; never changes it."""
