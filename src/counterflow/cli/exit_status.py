"""Exit statuses of the programs."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 75
"""Try again later: runs of a sweep are left for the next stage."""
EXIT_SIGNAL = 128
"""Plus the number of the signal."""
