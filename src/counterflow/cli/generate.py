"""Command line of ``counterflow generate``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from counterflow.cli.console import ArgumentParser, add_exit_arguments, closed_pipe_allowed
from counterflow.cli.predict import positive

_EXAMPLES = """\
examples:
  counterflow generate runs/mine --prompt "def main("
  counterflow generate runs/mine --prompt "class " --tokens 500 --temperature 0.5 --blocks 2"""


def main(arguments: Sequence[str]) -> int:
    """Print text that a language model generates; the exit status."""
    parser = ArgumentParser(
        prog="counterflow generate", description="Continue a text by a trained language model.", epilog=_EXAMPLES
    )
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--prompt", default="\n", metavar="TEXT", help="text to continue (a new line)")
    parser.add_argument("--tokens", type=positive, default=200, metavar="N", help="tokens at most (%(default)s)")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.8, metavar="T", help="0 is the likeliest token (%(default)s)"
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="draw among the K likeliest tokens (all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the draws (%(default)s)")
    add_exit_arguments(parser)
    options = parser.parse_args(arguments)
    import torch  # a parser needs none of it

    from counterflow.data.tokenization import tokenizer_of
    from counterflow.inference.generation import generate
    from counterflow.inference.load import load
    from counterflow.inference.model_files import TOKENIZER

    if not options.prompt:
        parser.error("--prompt: must not be empty")
    try:
        predictor = load(options.run, blocks=options.blocks, best=options.best)
        tokenizer = tokenizer_of(predictor.tokenizer, str(options.run / TOKENIZER))
        prompt = [int(token) for tokens in tokenizer.encode([options.prompt.encode()]) for token in tokens]
        if not prompt:
            raise ValueError(f"--prompt: has no token of {options.run / TOKENIZER}")
        generated = generate(
            predictor,
            torch.tensor(prompt),
            options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
        stream = tokenizer.stream(prompt)
        with closed_pipe_allowed():
            sys.stdout.write(options.prompt)
            for token in generated:
                if token == tokenizer.end:
                    break
                sys.stdout.write(stream.add(token))
                sys.stdout.flush()
            print(stream.finish())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")
    return value
