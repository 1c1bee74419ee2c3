"""Prints results of commands: tables on standard output, or JSON for scripts. Computes nothing."""
