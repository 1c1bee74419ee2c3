"""The expert index: open, look up, compare, check, export, pack. Knows no run, no store and no model."""
