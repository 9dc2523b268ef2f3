import pytest
import torch

from counterflow import data
from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split


def split(labels, shape=(1, 2, 2)):
    return Split(torch.zeros(len(labels), *shape, dtype=torch.uint8), torch.tensor(labels))


def test_every_configurable_name_has_a_loader():
    with pytest.raises(ValueError, match=r"data\.name=") as error:
        DataConfig(name="no such data")
    assert str(error.value).endswith("allowed are " + ", ".join(data.LOADERS))


def test_mean_and_std_are_those_of_the_training_pixels():
    images = torch.randint(256, (50, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 4
    labels = torch.zeros(50, dtype=torch.int64)
    dataset = Dataset.of(Split(images[:40], labels[:40]), Split(images[40:], labels[40:]), classes=1)
    pixels = images[:40].double()
    torch.testing.assert_close(dataset.mean, pixels.mean((0, 2, 3)).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(dataset.std, pixels.std((0, 2, 3), correction=0).float(), rtol=1e-7, atol=0)


def test_constant_channel_has_std_one():
    images = torch.full((4, 2, 3, 3), 200, dtype=torch.uint8)
    images[0, 1] = 100
    pixels = Split(images, torch.zeros(4, dtype=torch.int64))
    assert Dataset.of(pixels, pixels, classes=1).std.tolist() == [1.0, pytest.approx(43.30127)]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 3], [0], r"labels out of range: train has label 3: must be 0\.\.2"),
        ([0, 2], [1, -1], r"labels out of range: test has label -1: must be 0\.\.2"),
    ],
)
def test_labels_out_of_range(train, test, message):
    with pytest.raises(ValueError, match=message):
        Dataset.of(split(train), split(test), classes=3)


def test_splits_of_different_shapes():
    with pytest.raises(ValueError, match=r"\[1, 4, 4\]: must be \[1, 2, 2\]"):
        Dataset.of(split([0]), split([0], shape=(1, 4, 4)), classes=1)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [0.0], "std.*greater than 0"),
        ([0.0], [float("nan")], "std.*greater than 0"),
        ([0.0, 0.0], [1.0], "mean.*one a channel"),
        ([0.0], [1.0, 1.0], "std.*one a channel"),
    ],
)
def test_wrong_mean_and_std(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Dataset(split([0]), split([0]), 1, torch.tensor(mean), torch.tensor(std))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "labels=2: must be 3"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), r"images=float32 \[3, 1, 2, 2\]: must be uint8"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"must be uint8 \[M, C, H, W\]"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3), r"labels=float32 \[3\]: must be int64"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "must not be empty"),
    ],
)
def test_split_refuses_what_does_not_fit(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)
