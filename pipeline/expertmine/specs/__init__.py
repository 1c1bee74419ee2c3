"""Frozen settings and the plan of a run: the shared vocabulary. No behaviour, no store, no model."""
