"""``python -m counterflow`` is the ``counterflow`` command."""

from counterflow.cli.main import main

main()
