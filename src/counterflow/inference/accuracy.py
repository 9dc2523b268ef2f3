"""Accuracy of a trained network on a data set."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import exp, log, prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data import Dataset, Split, load
from counterflow.data.batch_loader import View, evaluation_views
from counterflow.data.text import windows_of
from counterflow.data.tokenization import load_tokenizer, tokenizer_of
from counterflow.inference.inputs import read_samples
from counterflow.inference.predictions import scores_of
from counterflow.inference.predictor import Predictor

_ROWS = 256
"""Samples that are read at a time."""
_SCORES = 1 << 24
"""Scores of text that are in memory at a time, but for those of one window: 64 MB."""
_Pairs = Iterable[tuple[Tensor, Tensor]]


def evaluate(
    predictor: Predictor,
    config: DataConfig,
    refuse: Callable[[str], object],
    batch_size: int,
    shown: Callable[[_Pairs], _Pairs] = iter,
) -> dict[str, Any]:
    """Evaluate on the test data of ``config``; images in folders are read one by one.

    Args:
        predictor: The network.
        config: The data set. With ``test_views`` above 1, ``tta_accuracy`` is that of the average over these views.
        refuse: Called with one line for each image file that cannot be read.
        batch_size: Samples at a time.
        shown: Wraps the samples as they are read, to show progress.

    Returns:
        ``samples`` and ``accuracy``; of sequences also ``sequence_accuracy``, or of text ``perplexity`` and
        ``bits_per_byte``; and ``tta_accuracy``.

    Raises:
        ValueError: The data is missing, or is not of the kind and the classes that the network was trained on.
    """
    views = evaluation_views(config.test_views) if config.test_views > 1 else ()
    if predictor.tokens_per_byte is None or config.name not in ("text", "stdlib"):
        return _measure(predictor, shown(_samples(predictor, config, refuse)), batch_size, views)
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.content != predictor.tokenizer:
        allowed = "none, as its tokens are bytes" if predictor.tokenizer is None else "the one that its run keeps"
        raise ValueError(f"data.tokenizer={config.tokenizer}: is not the network's tokenizer, allowed is {allowed}")
    dataset = load(config)
    return _measure(
        predictor,
        shown(_test_rows(predictor, config, dataset)),
        batch_size,
        views,
        (dataset.tokens_per_byte or {})["test"],
    )


def evaluate_text(
    predictor: Predictor, path: Path, batch_size: int, shown: Callable[[_Pairs], _Pairs] = iter
) -> dict[str, Any]:
    """Evaluate a language model on the text file ``path``, in the windows of its training; the result of `evaluate`.

    Raises:
        ValueError: The file has no window of text, or is no UTF-8.
        OSError: It cannot be read.
    """
    tokenizer = tokenizer_of(predictor.tokenizer, f"--text={path}")
    (length,) = predictor.input_shape
    split, tokens_per_byte = windows_of(path, length, tokenizer)
    return _measure(predictor, shown(_rows(split)), batch_size, (), tokens_per_byte)


def _measure(
    predictor: Predictor,
    found: _Pairs,
    batch_size: int,
    views: Sequence[View],
    tokens_per_byte: float | None = None,
) -> dict[str, Any]:
    """The result of `evaluate` on the samples ``found``; those of text have ``tokens_per_byte``."""
    samples = iter(found)
    if predictor.tokens_per_byte is not None:
        batch_size = max(1, min(batch_size, _SCORES // (prod(predictor.input_shape) * len(predictor.class_names))))
    count, right, right_sequences, right_of_views, positions, nats = 0, 0, 0, 0, 0, 0.0
    while batch := list(islice(samples, batch_size)):
        inputs, labels = (torch.stack(tensors) for tensors in zip(*batch, strict=True))
        scores = scores_of(predictor, inputs)
        if tokens_per_byte is not None:  # sample by sample, as this takes the memory of its scores several times
            pairs = zip(scores, labels, strict=True)
            nats += sum(float(F.cross_entropy(s.double(), y, reduction="sum")) for s, y in pairs)
        hits = scores.argmax(-1) == labels
        count, positions = count + len(hits), positions + hits.numel()
        right += int(hits.sum())
        right_sequences += int(hits.flatten(1).all(1).sum()) if hits.ndim > 1 else 0
        if views:
            right_of_views += int((scores_of(predictor, inputs, views).argmax(-1) == labels).sum())
    if not count:
        raise ValueError("data: holds no sample that the network can take")
    result: dict[str, Any] = {"samples": count, "accuracy": right / positions}
    if tokens_per_byte is not None:
        result["perplexity"] = exp(nats / positions)
        result["bits_per_byte"] = nats / positions * tokens_per_byte / log(2)
    elif positions > count:
        result["sequence_accuracy"] = right_sequences / count
    if views:
        result["tta_accuracy"] = right_of_views / positions
    return result


def _samples(
    predictor: Predictor, config: DataConfig, refuse: Callable[[str], object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and label of every test sample."""
    folder = Path(os.path.expanduser(config.root)) / "test"
    if config.name == "image_folder" and folder.is_dir():
        labels = {name: torch.tensor(label) for label, name in enumerate(predictor.class_names)}
        for path in sorted(path for path in folder.iterdir() if path.is_dir()):
            if path.name not in labels:
                refuse(f"{path}: is a class that the network does not have ({', '.join(predictor.class_names)})")
                continue
            for sample in read_samples([path], predictor, refuse):
                yield sample.inputs, labels[path.name]
        return
    yield from _test_rows(predictor, config, load(config))


def _test_rows(predictor: Predictor, config: DataConfig, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and label of every test sample of ``dataset``. ``ValueError`` if they are not for the network."""
    if tuple(dataset.class_names) != predictor.class_names:
        raise ValueError(f"data={config.name}: its classes are not those of the network: {_few(predictor.class_names)}")
    assert dataset.test is not None, "data sets by name have test data"
    split = dataset.test
    found, wanted = (str(split.inputs.dtype), *split.inputs.shape[1:]), (str(predictor.dtype), *predictor.input_shape)
    if found != wanted:
        raise ValueError(f"data={config.name}: samples are {found}: must be {wanted}, as in training")
    yield from _rows(split)


def _rows(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(split), _ROWS):
        yield from zip(*split.rows(slice(start, start + _ROWS)), strict=True)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")
