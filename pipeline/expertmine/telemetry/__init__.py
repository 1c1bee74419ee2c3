"""Logs, progress bars, numbers formatted for people, and metrics. Knows no task and no runtime."""
