"""Parser of the command lines that hydra does not read."""

import argparse
import os
import time
from typing import NoReturn

from counterflow.cli.exit_status import EXIT_USAGE

_ERROR_DELAY = 5.0
"""Seconds."""


class ArgumentParser(argparse.ArgumentParser):
    """Parser whose errors are one line, like all errors of this project."""

    def error(self, message: str) -> NoReturn:
        """Print one line from the first process of each node, and exit."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # Torchrun kills all processes once one has ended: the first process of the node has to print before that.
            time.sleep(_ERROR_DELAY)
            self.exit(EXIT_USAGE)
        self.exit(EXIT_USAGE, f"error: {message}\n")
