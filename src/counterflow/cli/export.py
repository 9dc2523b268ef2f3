"""Command line of ``counterflow export``."""

from collections.abc import Sequence
from pathlib import Path

from counterflow.cli.console import ArgumentParser, add_exit_arguments, closed_pipe_allowed

_FORMATS = {"safetensors": "safetensors", "pt2": "pt2", "onnx": "onnx", "torchvision": "pth"}
"""Formats, and the suffix of a file of each."""
_EXAMPLES = """\
examples:
  counterflow export runs/mine --format pt2
  counterflow export runs/mine --format onnx --blocks 2 --out small.onnx"""


def main(arguments: Sequence[str]) -> int:
    """Export the network of a run; the exit status."""
    parser = ArgumentParser(
        prog="counterflow export", description="Write a trained network for use elsewhere.", epilog=_EXAMPLES
    )
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--format", choices=_FORMATS, default="pt2", help="format of the file (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (RUN/network.SUFFIX)")
    add_exit_arguments(parser)
    options = parser.parse_args(arguments)
    from counterflow.inference.exporters import export  # a parser needs no torch
    from counterflow.inference.load import load
    from counterflow.inference.model_files import ModelFiles

    path = options.out or options.run / f"network.{_FORMATS[options.format]}"
    try:
        described = ModelFiles.read(options.run).description
        if options.format == "torchvision" and options.blocks not in (None, len(described.cut)):
            raise ValueError(f"--blocks={options.blocks}: has no effect with --format torchvision")
        checked = export(load(options.run, blocks=options.blocks, best=options.best), path, options.format, described)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with closed_pipe_allowed():
        print(f"{path}: {checked}")
    return 0
