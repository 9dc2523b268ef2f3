import pytest
import torch

from counterflow import data
from counterflow.config import DATA, DataConfig
from counterflow.data.dataset import Dataset, Split


def test_choices_of_the_group_are_the_loaders():
    assert DATA.keys() == data.LOADERS.keys()


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
    mean, std = Dataset(Split(images[:40], labels[:40]), Split(images[40:], labels[40:]), classes=1).moments
    pixels = images[:40].double()
    torch.testing.assert_close(mean, pixels.mean((0, 2, 3)).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(std, pixels.std((0, 2, 3), correction=0).float(), rtol=1e-7, atol=0)


def test_constant_channel_has_std_one():
    images = torch.full((4, 2, 3, 3), 200, dtype=torch.uint8)
    images[0, 1] = 100
    pixels = Split(images, torch.zeros(4, dtype=torch.int64))
    dataset = Dataset(pixels, pixels, classes=1)
    mean, std = dataset.moments
    assert (mean.tolist(), std.tolist()) == ([200.0, 175.0], [1.0, pytest.approx(43.30127)])
    assert bool((dataset.normalised(images)[:, 0] == 0).all())


def test_tokens_are_not_normalised():
    tokens = torch.randint(5, (4, 6))
    split = Split(tokens, tokens)
    assert Dataset(split, split, classes=5).normalised(tokens) is tokens


@pytest.mark.parametrize("shape", [(7,), (1, 2, 2), (3, 5)])
def test_numbers_of_any_shape_are_used_as_they_are(shape):
    inputs, labels = torch.randn(4, *shape), torch.tensor([0, 2, 1, 2])
    numbers = Split(inputs, labels)
    assert Dataset(numbers, numbers, classes=3).normalised(inputs) is inputs
    assert (numbers.images, numbers.sequences, len(numbers)) == (False, False, 4)
    taken = numbers[torch.tensor([3, 1])]
    assert torch.equal(taken.inputs, inputs[[3, 1]])
    assert torch.equal(taken.labels, labels[[3, 1]])


def test_labels_of_numbers_out_of_range():
    numbers = Split(torch.randn(3, 7), torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match=r"^labels out of range: train has label 2: must be 0\.\.1$"):
        Dataset(numbers, numbers, classes=2)


def test_splits_of_different_kinds():
    numbers = Split(torch.randn(3, 1, 2, 2), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match=r"^type of test inputs=float32: must be uint8, that of the training inputs$"):
        Dataset(split([0]), numbers, classes=1)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 3], [0], r"labels out of range: train has label 3: must be 0\.\.2"),
        ([0, 2], [1, -1], r"labels out of range: test has label -1: must be 0\.\.2"),
    ],
)
def test_labels_out_of_range(train, test, message):
    with pytest.raises(ValueError, match=message):
        Dataset(split(train), split(test), classes=3)


def test_splits_of_different_shapes():
    with pytest.raises(ValueError, match=r"\[1, 4, 4\]: must be \[1, 2, 2\]"):
        Dataset(split([0]), split([0], shape=(1, 4, 4)), classes=1)


def test_tokens_out_of_range():
    good, bad = (Split(torch.tensor([[0, token]]), torch.tensor([[1, 0]])) for token in (2, 3))
    Dataset(good, good, classes=3)
    with pytest.raises(ValueError, match=r"^tokens out of range: test has token 3: must be 0\.\.2$"):
        Dataset(good, bad, classes=3)
    with pytest.raises(ValueError, match=r"^labels out of range: train has label 1: must be 0\.\.0$"):
        Dataset(good, good, classes=1)


def test_images_and_sequences():
    sequences = Split(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[2\]: must be \[1, 2, 2\]"):
        Dataset(split([0]), sequences, classes=1)


KINDS = r"must be images, uint8 \[M, C, H, W\], sequences, int64 \[M, T\], or numbers, float32 \[M, \.\.\.\]"


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"int64 \[2\]: .* int64 \[3\]"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), rf"inputs=float32 \[3\]: {KINDS}"),
        (torch.zeros(3, 5).double(), torch.zeros(3, dtype=torch.int64), rf"inputs=float64 \[3, 5\]: {KINDS}"),
        (torch.zeros(3, 1, 2, 2).half(), torch.zeros(3, dtype=torch.int64), KINDS),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), KINDS),
        (torch.zeros(3, 1, 2, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), KINDS),
        (torch.zeros(3, 5, dtype=torch.uint8), torch.zeros(3, 5, dtype=torch.int64), KINDS),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3), r"labels=float32 \[3\]: must be int64"),
        (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), r"\[3\]: must be int64 \[3, 5\]"),
        (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5), r"float32 \[3, 5\]: must be int64 \[3, 5\]"),
        (torch.zeros(3, 5), torch.zeros(3, 5, dtype=torch.int64), r"labels=int64 \[3, 5\]: must be int64 \[3\]"),
        (torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64), r"labels=int64 \[2\]: must be int64 \[3\]"),
        (torch.zeros(3, 5), torch.zeros(3), r"labels=float32 \[3\]: must be int64 \[3\]"),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), "must not be empty"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "must not be empty"),
        (torch.zeros(4, 0, dtype=torch.int64), torch.zeros(4, 0, dtype=torch.int64), "must not be empty"),
    ],
)
def test_split_refuses_what_does_not_fit(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(inputs, labels)


def numbered(size: int) -> Split:
    return Split(torch.arange(size, dtype=torch.uint8)[:, None, None, None], torch.zeros(size, dtype=torch.int64))


def test_what_is_held_out_is_no_part_of_training_and_always_the_same():
    dataset = Dataset(numbered(50), numbered(3), classes=1)
    held_out = dataset.split_validation(0.3, None)
    torch.manual_seed(7)
    again = dataset.split_validation(0.3, 20)
    assert held_out.validation is not None
    assert again.validation is not None
    parts = [held_out.validation.inputs.flatten().tolist(), held_out.train.inputs.flatten().tolist()]
    assert [len(part) for part in parts] == [15, 35]
    assert sorted(parts[0] + parts[1]) == list(range(50))
    assert again.validation.inputs.flatten().tolist() == parts[0]
    assert again.train.inputs.flatten().tolist() == parts[1][:20]
    assert torch.equal(again.test.inputs, dataset.test.inputs)


def test_nothing_held_out_leaves_the_data_as_it_is():
    dataset = Dataset(numbered(5), numbered(3), classes=1)
    assert dataset.split_validation(0.0, None) is dataset
    assert len(dataset.split_validation(0.0, 4).train) == 4


@pytest.mark.parametrize(
    ("share", "limit", "message"),
    [
        (0.01, None, r"data\.validation=0\.01: of 10 training samples, this leaves none on one side"),
        (0.99, None, r"data\.validation=0\.99: of 10"),
        (0.2, 9, r"data\.limit=9: must be at most 8"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(share, limit, message):
    with pytest.raises(ValueError, match=message):
        Dataset(numbered(10), numbered(3), classes=1).split_validation(share, limit)
