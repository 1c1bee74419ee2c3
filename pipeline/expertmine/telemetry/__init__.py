"""Logs, progress, numbers as people read them, and metrics. Knows no task and no runtime."""
