"""Predictions of a trained network, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from counterflow.data.batch_loader import View
from counterflow.inference.inputs import Sample
from counterflow.inference.predictor import Predictor


class Labelled(NamedTuple):
    """Predicted class of a sample; of a sequence, lists with an entry for each position."""

    name: str
    label: str | list[str]
    probability: float | list[float]
    """Softmax of the scores."""


def predictions(predictor: Predictor, samples: Iterable[Sample], batch_size: int) -> Iterator[Labelled]:
    """Predict the classes of ``samples``, whose order stays."""
    names = predictor.class_names
    remaining = iter(samples)
    while batch := list(islice(remaining, batch_size)):
        scores = scores_of(predictor, torch.stack([sample.inputs for sample in batch]))
        values, labels = scores.softmax(-1).max(-1)
        for sample, value, label in zip(batch, values.tolist(), labels.tolist(), strict=True):
            named = names[label] if isinstance(label, int) else [names[one] for one in label]
            yield Labelled(sample.name, named, value)


@torch.inference_mode()
def scores_of(predictor: Predictor, inputs: Tensor, views: Sequence[View] = ()) -> Tensor:
    """Scores of a batch on the CPU; with ``views``, their weighted sum over these views of images."""
    device = next(predictor.parameters()).device
    inputs = inputs.to(device)
    if not views:
        return predictor(inputs).cpu()  # type: ignore[no-any-return]
    total = sum(view.weight * predictor(view.of(inputs)) for view in views)
    assert isinstance(total, Tensor)
    return total.cpu()
