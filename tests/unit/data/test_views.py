"""Views of evaluation images, for test-time augmentation."""

import pytest
import torch
from torch.nn import functional as F

from counterflow.config import DataConfig
from counterflow.data.batch_loader import BatchLoader, EpochSampler
from counterflow.data.dataset import Dataset, Split

GENERATOR = torch.Generator().manual_seed(0)
TEST = Split(torch.randint(256, (7, 3, 4, 5), dtype=torch.uint8, generator=GENERATOR), torch.arange(7))
TRAIN = Split(torch.randint(256, (9, 3, 4, 5), dtype=torch.uint8, generator=GENERATOR), torch.arange(9))
DATA = Dataset(TRAIN, TEST, 9)


def loader(views: int, dataset: Dataset = DATA) -> BatchLoader:
    return BatchLoader(dataset, DataConfig(name="digits", test_views=views), EpochSampler(len(dataset.train), 4, 1))


@pytest.mark.parametrize("views", [2, 6])
def test_every_batch_comes_in_all_views_the_plain_one_last(views: int) -> None:
    feed = loader(views)
    assert len(feed.test) == 2 * views
    images = TEST.inputs.float()
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    down, up = padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]
    expected = [down, down.flip(3), up, up.flip(3), images.flip(3), images][-views:]
    weights = [1, 1, 1, 1, 2, 2][-views:]
    for e in feed.test:
        part = slice(4 * (e // views), 4 * (e // views) + 4)
        assert torch.equal(feed.evaluation_inputs(e), DATA.normalised(expected[e % views].to(torch.uint8))[part])
        assert torch.equal(feed.evaluation_labels(e), TEST.labels[part])
        assert feed.view(e).weight == weights[e % views]
        assert feed.view(e).plain == (e % views == views - 1)


def test_every_sample_has_one_label() -> None:
    feed = loader(6)
    assert torch.equal(feed.labels_of(feed.test), TEST.labels)
    assert torch.equal(feed.labels_of(range(5, 12, 6)), TEST.labels), "an evaluation of the plain view alone"


def test_held_out_data_has_as_many_views() -> None:
    feed = loader(2, DATA.split_validation(0.34, None))
    assert (feed.validation, feed.test) == (range(2), range(2, 6))
    assert torch.equal(feed.evaluation_inputs(0).flip(3), feed.evaluation_inputs(1))


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.test_views=3: allowed are 1, 2, 6$"):
        DataConfig(name="digits", test_views=3)
    with pytest.raises(ValueError, match=r"^data\.test_views=2: flips images, allowed with data\.flip=false is 1$"):
        DataConfig(name="digits", test_views=2, flip=False)
    tokens = Dataset(Split(torch.zeros(4, 3).long(), torch.zeros(4, 3).long()), None, 2)
    with pytest.raises(ValueError, match=r"^data\.test_views=6: is for images of at least two pixels a side, allowed"):
        loader(6, tokens)
