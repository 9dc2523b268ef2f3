"""Command line of ``counterflow tokenize``."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from counterflow.cli.console import ArgumentParser, closed_pipe_allowed
from counterflow.cli.predict import positive

_EXAMPLES = """\
examples:
  counterflow tokenize --data stdlib --vocabulary 4096 --out bpe.json
  counterflow tokenize --root books --out bpe.json"""


def main(arguments: Sequence[str]) -> int:
    """Train a tokenizer on the training part of a text; the exit status."""
    parser = ArgumentParser(
        prog="counterflow tokenize",
        description="Train a byte-level BPE tokenizer on the training part of a text, and write its file.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--data", choices=("text", "stdlib"), default="text", help="the text (%(default)s)")
    parser.add_argument("--root", metavar="DIR", help="folder or file of --data text")
    parser.add_argument("--vocabulary", type=positive, default=4096, metavar="C", help="tokens at most (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--validation", type=_share, default=0.05, metavar="S", help="data.validation of the runs (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if (options.root is None) != (options.data == "stdlib"):
        parser.error("--root: is the text of --data text, and of nothing else")
    from counterflow.config import DATA
    from counterflow.config.validators import LARGEST
    from counterflow.data.text import train_on  # a parser needs no torch
    from counterflow.data.tokenization import SMALLEST

    if not SMALLEST <= options.vocabulary <= LARGEST:
        parser.error(f"--vocabulary={options.vocabulary}: must be at least {SMALLEST} and at most {LARGEST}")
    folder = Path(os.path.expanduser(options.root or ""))
    if options.root is not None and folder.is_dir() and options.out.resolve().is_relative_to(folder.resolve()):
        parser.error(f"--out={options.out}: must be outside of --root={options.root}, whose files are the text")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out={options.out}: its folder is not there")
    config = replace(DATA[options.data], validation=options.validation, root=options.root or DATA[options.data].root)
    try:
        trained = train_on(config, options.vocabulary)
        tokenizer = trained.tokenizer
        options.out.write_bytes(tokenizer.content or b"")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with closed_pipe_allowed():
        print(
            f"{options.out}: {tokenizer.vocabulary} tokens; {trained.bytes / trained.tokens:.3f} bytes a token on the "
            f"held-out text of {trained.bytes:,} bytes"
        )
    return 0


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be greater than 0 and below 1")
    return value
