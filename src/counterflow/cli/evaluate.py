"""Command line of ``counterflow evaluate``."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from counterflow.cli.console import EXIT_FAILURE, ArgumentParser, add_exit_arguments, closed_pipe_allowed, progress
from counterflow.cli.predict import Refused, positive

if TYPE_CHECKING:
    from torch import Tensor

    from counterflow.config import DataConfig

_EXAMPLES = """\
examples:
  counterflow evaluate runs/mine
  counterflow evaluate runs/mine data=image_folder data.root=photos data.test_views=6"""


def main(arguments: Sequence[str]) -> int:
    """Evaluate the network of a run on the test data of a data set; the exit status."""
    parser = ArgumentParser(
        prog="counterflow evaluate",
        description="Accuracy of a trained network on test data: of its run's, or of data=NAME data.root=DIR.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument(
        "overrides", nargs="*", metavar="data..=VALUE", help="another data set; data.test_views=2|6 averages views"
    )
    add_exit_arguments(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text file as the test data of a language model")
    parser.add_argument("--batch-size", type=positive, default=256, metavar="B", help="samples at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one object in place of lines")
    options = parser.parse_intermixed_args(arguments)
    from counterflow.inference.accuracy import evaluate, evaluate_text  # a parser needs no torch
    from counterflow.inference.load import load

    refused = Refused()
    try:
        predictor = load(options.run, blocks=options.blocks, best=options.best)
        size = options.batch_size
        if options.text is None:
            data = _data(options.run, options.overrides, predictor.tokenizer is not None)
            result = evaluate(predictor, data, refused, size, _progress)
        elif predictor.tokens_per_byte is None or options.overrides:
            raise ValueError("--text: is for language models, without another data set")
        else:
            result = evaluate_text(predictor, options.text, size, _progress)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with closed_pipe_allowed():
        if options.json:
            print(json.dumps(result))
        else:
            print("\n".join(f"{name} {value}" for name, value in result.items()))
    return EXIT_FAILURE if refused.count else 0


def _progress(items: "Iterable[tuple[Tensor, Tensor]]") -> "Iterator[tuple[Tensor, Tensor]]":
    return progress(items, "samples")


def _data(run: Path, overrides: Sequence[str], subwords: bool) -> "DataConfig":
    """The data set of ``run`` with ``overrides``, or another one that these name.

    A text becomes tokens by the tokenizer that the run keeps, if its tokens are ``subwords``.
    """
    from omegaconf import OmegaConf

    from counterflow.cli.hydra_app import load_config
    from counterflow.config import DATA
    from counterflow.inference.model_files import TOKENIZER

    for override in overrides:
        if not override.startswith(("data=", "data.")):
            raise ValueError(f"{override}: allowed are data=NAME and data.KEY=VALUE")
    given = {override.split("=")[0] for override in overrides}
    if "data" not in given:
        own = OmegaConf.load(run / "config.yaml").data
        if own.name not in DATA:
            raise ValueError(f"run={run}: was trained on data of a script; name a data set by data=NAME data.root=DIR")
        # The share that is held out decides which files of a text are test data.
        keys = ("root", "length", "evaluated", "validation", "cache")
        kept = [key for key in keys if key in own and f"data.{key}" not in given]
        data = load_config([f"data={own.name}", *overrides]).data
        data = replace(data, **{key: own[key] for key in kept})
    else:
        data = load_config(overrides).data
    if subwords and data.name in ("text", "stdlib") and "data.tokenizer" not in given:
        data = replace(data, tokenizer=str(run / TOKENIZER))
    return data
