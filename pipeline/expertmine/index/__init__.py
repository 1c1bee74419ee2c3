"""The expert index: open, look up, compare, check, export, pack. Knows no run, store or model."""
