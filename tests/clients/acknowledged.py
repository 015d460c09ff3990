"""Shared by the clients: takes an address and a number, and prints each record that the server has acknowledged."""

import sys

ADDRESS, TOTAL = sys.argv[1], int(sys.argv[2])
_acknowledged = 0


def acknowledged(key):
    """Prints a record's key."""
    global _acknowledged
    _acknowledged += 1
    print(key, flush=True)


def done():
    """Returns whether enough records were acknowledged."""
    return _acknowledged >= TOTAL
