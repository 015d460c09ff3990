"""What every client here does: takes an address and a number, and prints each record that it was told is stored."""

import sys

ADDRESS, WANTED = sys.argv[1], int(sys.argv[2])
_told = 0


def told(key):
    """Prints a record's key; says whether that is enough."""
    global _told
    _told += 1
    print(key, flush=True)
    return _told >= WANTED


def enough():
    return _told >= WANTED
