"""A user's own network and images work with every algorithm."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

CLASSES = 11


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 7 x 5 pixels and 3 channels; each class is a pattern, with noise."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 200, (CLASSES, 7, 5, 3))
    arrays = {}
    for split, size in (("train", 330), ("test", 110)):
        labels = np.arange(size) % CLASSES
        arrays[f"{split}_images"] = (patterns[labels] + generator.integers(0, 50, (size, 7, 5, 3))).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    folder = tmp_path_factory.mktemp("images")
    np.savez(folder / "images.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    "algorithm",
    [
        ("algorithm=bll",),
        ("algorithm=al",),
        ("algorithm=predsim",),
        ("algorithm=bp",),
        ("algorithm=fa",),
        ("algorithm=bp", "schedule=naive"),
        ("algorithm=bp", "schedule=pipedream"),
    ],
    ids=" ".join,
)
def test_an_odd_network_learns_odd_images(pool: Pool, images: Path, algorithm: tuple[str, ...]) -> None:
    options = (
        "model=custom",
        "model.target=tests.helpers.networks.odd",
        "blocks=3",
        "data=image_folder",
        f"data.root={images}",
    )
    length = (
        "train.epochs=30",
        "train.steps=66",
        "train.batch_size=30",
        "train.evaluate_every=0",
        "optimizer.lr=0.01",
    )
    summary = summary_of(pool, 3, *options, *length, "train.microbatches=3", *algorithm)
    assert summary["test_accuracy"] > 0.8
    assert len(summary["block_accuracy"]) == 3


def test_an_output_of_the_wrong_width_is_refused(pool: Pool, images: Path) -> None:
    options = (
        "model=custom",
        "model.target=tests.helpers.networks.odd",
        "model.args={classes: 4}",
        "blocks=3",
        "data=image_folder",
    )
    with pytest.raises(AssertionError, match=r"output has shape \[4\], the labels of data=image_folder need \[11\]"):
        summary_of(pool, 1, *options, f"data.root={images}", "train.batch_size=30")
