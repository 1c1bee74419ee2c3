"""The one exception that users are meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something in the user's hands is wrong: says what was found, where, what was expected, and what to do.

    The command line prints the message alone and exits with code 2.
    """
