"""Measure: ``python launch/bench.py suite=emulated ranks=8 quick=true``, or ``suite=all``.

The contenders of a suite run side by side in alternating order, on processes that this program starts; a table of
medians and ratios, ``bench.json`` and the figures are what it leaves.
"""

from pathlib import Path

from counterflow.bench.program import main

if __name__ == "__main__":
    main(Path(__file__).parent.parent / "conf")
