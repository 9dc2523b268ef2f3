"""Command line: the programs under ``launch/``."""

import os

# Torch reads it once, when it is loaded. Its store prints pages of C++ frames for an error that we print in one line.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
