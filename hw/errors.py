"""The errors that are the user's to mend."""

from __future__ import annotations


class RedlineError(Exception):
    """Something outside the code is wrong, missing or impossible; the message says what, and the remedy.

    The command line shows the message as one line. What a caller may want to tell apart has a class of its own.
    """
