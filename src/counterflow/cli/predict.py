"""Command line of ``counterflow predict``."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

from counterflow.cli.console import EXIT_FAILURE, ArgumentParser, add_exit_arguments, closed_pipe_allowed, progress

if TYPE_CHECKING:
    from counterflow.inference.predictions import Labelled

_EXAMPLES = """\
examples:
  counterflow predict runs/mine photos/ --resize > labels.csv
  counterflow predict runs/mine digits.npy --format jsonl --out labels.jsonl"""


def main(arguments: Sequence[str]) -> int:
    """Predict the classes of files; the exit status, which is not 0 if one of them could not be read."""
    parser = ArgumentParser(
        prog="counterflow predict", description="Predict classes by a trained network.", epilog=_EXAMPLES
    )
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument(
        "inputs", type=Path, nargs="+", metavar="INPUT", help="image files, folders of them, .npy or .npz arrays"
    )
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="form of the output (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (standard output)")
    add_exit_arguments(parser)
    parser.add_argument("--resize", action="store_true", help="scale images to the size that was trained on")
    parser.add_argument("--batch-size", type=positive, default=256, metavar="B", help="samples at a time (%(default)s)")
    options = parser.parse_intermixed_args(arguments)
    from counterflow.inference.inputs import read_samples  # a parser needs no torch
    from counterflow.inference.load import load
    from counterflow.inference.predictions import predictions

    refused = Refused()
    try:
        predictor = load(options.run, blocks=options.blocks, best=options.best)
        samples = progress(read_samples(options.inputs, predictor, refused, options.resize), "samples")
        with closed_pipe_allowed(), _opened(options.out) as file:
            _WRITERS[options.format](file, predictions(predictor, samples, options.batch_size))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return EXIT_FAILURE if refused.count else 0


class Refused:
    """Prints a line for each input that is left out, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, reason: str) -> None:
        self.count += 1
        print(f"note: left out: {reason}", file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """A whole number of at least 1 from the command line."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    with nullcontext(sys.stdout) if path is None else path.open("w", newline="", encoding="utf-8") as file:
        yield file


def _write_csv(file: IO[str], rows: Iterable["Labelled"]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["input", "label", "probability"])
    for row in rows:
        several = isinstance(row.label, list)
        label = " ".join(row.label) if several else row.label
        values = row.probability if isinstance(row.probability, list) else [row.probability]
        writer.writerow([row.name, label, " ".join(f"{value:.6g}" for value in values)])


def _write_jsonl(file: IO[str], rows: Iterable["Labelled"]) -> None:
    for row in rows:
        print(json.dumps({"input": row.name, "label": row.label, "probability": row.probability}), file=file)


_WRITERS: dict[str, Callable[[IO[str], Iterable["Labelled"]], None]] = {"csv": _write_csv, "jsonl": _write_jsonl}
