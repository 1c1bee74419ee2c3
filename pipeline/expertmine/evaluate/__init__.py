"""Measures the effects of steering: success, fluency, side effects. Writes only a run's ``evaluation/`` and its index's
``steering.json``."""
