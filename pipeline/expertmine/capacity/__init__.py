"""Estimates what a job would take on given hardware. Runs no job."""
