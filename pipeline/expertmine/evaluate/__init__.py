"""Measure what steering does: success, fluency, side effects. Of a run, only ``evaluation/`` and the index's
``steering.json`` are written."""
