"""Run benchmarks: ``python launch/bench.py suite=emulated ranks=8 quick=true``, or ``suite=all``.

Starts its own processes and measures the cases of a suite side by side in interleaved rounds. Writes a table of medians
and ratios, ``bench.json`` and charts.
"""

from counterflow.bench.cli import main

if __name__ == "__main__":
    main()
