import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from counterflow.data import Split, as_dataset, as_split

FLOATS, LABELS = torch.randn(6, 3, 4), torch.tensor([0, 2, 1, 0, 4, 2])
GENERATOR = np.random.default_rng(0)


class MapStyle:
    """A data set of torch, as a user writes one."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def map_style(inputs, labels=(0, 2, 1)):
    return MapStyle(list(zip(inputs, labels, strict=True)))


def pixels(*shape):
    return GENERATOR.integers(256, size=shape, dtype=np.uint8)


def same(split, inputs, labels):
    assert split.inputs.dtype == inputs.dtype
    assert torch.equal(split.inputs, inputs)
    assert torch.equal(split.labels, torch.as_tensor(labels))
    return True


def test_a_split_and_a_pair_are_taken_without_a_copy():
    split = Split(FLOATS, LABELS)
    assert as_split(split, "train").inputs is FLOATS
    for pair in ((FLOATS, LABELS), [FLOATS, LABELS]):
        assert as_split(pair, "train").inputs is FLOATS
        assert as_split(pair, "train").labels is LABELS


def test_samples_are_stacked():
    assert same(as_split(TensorDataset(FLOATS, LABELS), "train"), FLOATS, LABELS)
    assert same(as_split(map_style(FLOATS[:3]), "train"), FLOATS[:3], [0, 2, 1])
    arrays = pixels(3, 1, 5, 7)
    assert same(as_split(map_style(arrays), "train"), torch.from_numpy(arrays), [0, 2, 1])
    assert same(as_split(map_style(FLOATS[:3].numpy(), np.array([0, 2, 1])), "train"), FLOATS[:3], [0, 2, 1])
    assert same(as_split([(FLOATS[0], 3), (FLOATS[1], 0), (FLOATS[2], 1)], "train"), FLOATS[:3], [3, 0, 1])


def test_numbers_and_sequences():
    assert same(as_split(map_style([0.5, 1.5, -2.0]), "train"), torch.tensor([[0.5], [1.5], [-2.0]]), [0, 2, 1])
    tokens = torch.randint(5, (3, 6))
    assert same(as_split(map_style(tokens, tokens.flip(1)), "train"), tokens, tokens.flip(1))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pil_images_become_bytes_with_their_channels_first(mode, channels):
    arrays = pixels(3, 5, 7, channels)
    images = [Image.fromarray(array.squeeze(-1) if channels == 1 else array) for array in arrays]
    assert {image.mode for image in images} == {mode}
    assert same(as_split(map_style(images), "train"), torch.from_numpy(arrays).permute(0, 3, 1, 2), [0, 2, 1])


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter([(FLOATS[0], 0)] * 3)


MUST = "must be a Split, a pair of tensors (inputs, labels), or a Dataset with __len__ and __getitem__"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Stream(), f"test=Stream: {MUST}"),
        (iter([]), f"test=list_iterator: {MUST}"),
        (None, f"test=NoneType: {MUST}"),
        (MapStyle([]), "test=MapStyle: must not be empty"),
        (FLOATS, "test[0]=Tensor: must be a pair (input, label)"),
        (MapStyle([(FLOATS[0], 1), FLOATS[1]]), "test[1]=Tensor: must be a pair (input, label)"),
        (MapStyle([(FLOATS[0], 1, 2)]), "test[0]=tuple: must be a pair (input, label)"),
        (
            map_style([FLOATS[0], FLOATS[1], FLOATS[2, :2]]),
            "test[2] has float32 [2, 4]: must be float32 [3, 4], as test[0]",
        ),
        (
            map_style([FLOATS[0], FLOATS[1].int(), FLOATS[2]]),
            "test[1] has int32 [3, 4]: must be float32 [3, 4], as test[0]",
        ),
        (
            map_style([Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2)), Image.new("L", (2, 3))]),
            "test[1] has uint8 [3, 2, 3]: must be uint8 [3, 3, 2], as test[0]",
        ),
        (map_style([Image.new("RGBA", (2, 3))] * 3), "test[0] has pixels of mode RGBA: must be L (grey) or RGB"),
        (map_style(["a", "b", "c"]), "test[0]: input is str: must be a tensor, an array or a number"),
        (map_style(FLOATS[:3], [0, 1, None]), "test[2]: label is NoneType: must be a tensor, an array or a number"),
        (map_style(FLOATS[:3], [0, 0.5, 1]), "test[1]: label is float32 []: must be whole numbers"),
        (map_style(FLOATS[:3], [True, 0, 1]), "test[0]: label is bool []: must be whole numbers"),
        (map_style(FLOATS[:3], [0, 1, -1]), "test[2]: label=-1: must not be negative"),
        ((FLOATS, LABELS - 1), "test[0]: label=-1: must not be negative"),
        (Split(FLOATS, LABELS - 2), "test[0]: label=-2: must not be negative"),
        ((FLOATS, LABELS[:5]), "test: labels=int64 [5]: must be int64 [6]"),
        ((FLOATS, LABELS.float()), "test: labels=float32 [6]: must be int64 [6]"),
        ((FLOATS[:0], LABELS[:0]), "test: inputs=float32 [0, 3, 4]: must not be empty"),
        (
            map_style(FLOATS[:3].double()),
            "test: inputs=float64 [3, 3, 4]: must be images, uint8 [M, C, H, W], "
            "sequences, int64 [M, T], or numbers, float32 [M, ...]",
        ),
    ],
)
def test_refused(source, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        as_split(source, "test")


def test_an_error_of_the_users_own_passes_through():
    class Broken(MapStyle):
        def __getitem__(self, index):
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        as_split(Broken([1]), "train")


def test_classes_are_counted_over_both_sources():
    train, test = (FLOATS[:4], LABELS[:4]), (FLOATS[4:], LABELS[4:])
    assert as_dataset(train, test).classes == 5
    assert as_dataset(test, train).classes == 5
    assert as_dataset(train).classes == 3
    assert as_dataset(train, test, classes=7).classes == 7
    tokens = torch.tensor([[0, 6], [1, 2]])
    assert as_dataset((tokens, tokens % 3)).classes == 7
    with pytest.raises(ValueError, match=r"^labels out of range: test has label 4: must be 0\.\.2$"):
        as_dataset(train, test, classes=3)


def test_validation_and_limit():
    dataset = as_dataset((FLOATS, LABELS), validation=0.5, limit=2)
    assert dataset.test is None
    assert dataset.validation is not None
    assert (len(dataset.train), len(dataset.validation)) == (2, 3)
    with pytest.raises(ValueError, match=r"^data\.limit=9: must be at most 6, "):
        as_dataset((FLOATS, LABELS), limit=9)
    with pytest.raises(ValueError, match=r"^test\[0\]: label=-1: must not be negative$"):
        as_dataset((FLOATS, LABELS), (FLOATS, LABELS - 1))
