import pytest
import torch

from counterflow.config import DataConfig
from counterflow.data.augment import augment
from counterflow.data.batch_loader import BatchLoader, EpochSampler
from counterflow.data.dataset import Dataset, Split

TRAIN, TEST, BATCH = 30, 10, 4


@pytest.fixture(scope="module")
def dataset():
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Split(
            torch.randint(256, (size, 3, 6, 5), dtype=torch.uint8, generator=generator),
            torch.randint(7, (size,), generator=generator),
        )
        for size in (TRAIN, TEST)
    )
    return Dataset(train, test, classes=7)


def batches(dataset, seed=1, batch_size=BATCH, **options):
    return BatchLoader(
        dataset, DataConfig(name="digits", **options), EpochSampler(len(dataset.train), batch_size, seed)
    )


def normalised(dataset, images):
    mean, std = dataset.moments
    channels = [(images[:, c].float() - mean[c]) / std[c] for c in range(images.shape[1])]
    return torch.stack(channels, 1)


def test_inputs_and_labels_follow_the_order(dataset):
    feed = batches(dataset)
    for n in (0, 6, 7, 20):
        indices = feed.order.indices(n)
        assert torch.equal(feed.inputs(n), normalised(dataset, dataset.train.inputs[indices]))
        assert torch.equal(feed.labels(n), dataset.train.labels[indices])
        assert feed.inputs(n).dtype == torch.float32
        assert feed.labels(n).dtype == torch.int64


def test_training_inputs_have_mean_zero_and_variance_one(dataset):
    inputs = batches(dataset, batch_size=TRAIN).inputs(0)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_augmented_inputs(dataset):
    feed = batches(dataset, augment=True, padding=1, flip=False)
    for n in (0, 9):  # 7 batches an epoch
        indices = feed.order.indices(n)
        images = dataset.train.inputs[indices]
        expected = augment(images, indices, seed=1, epoch=n // 7, size=TRAIN, padding=1, flip=False)
        assert torch.equal(feed.inputs(n), normalised(dataset, expected))
        assert not torch.equal(expected, images)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 30])
def test_test_batches_are_the_test_split_in_order(dataset, batch_size):
    feed = batches(dataset, batch_size=batch_size, augment=True)
    assert len(feed.test) == {1: 10, 3: 4, 4: 3, 5: 2, 10: 1, 30: 1}[batch_size]
    parts = [feed.evaluation_inputs(e) for e in feed.test]
    assert [len(part) for part in parts] == [feed.evaluation_size(e) for e in feed.test]
    assert torch.equal(torch.cat(parts), normalised(dataset, dataset.test.inputs))
    assert torch.equal(feed.labels_of(feed.test), dataset.test.labels)
    assert torch.equal(torch.cat([feed.evaluation_labels(e) for e in feed.test]), dataset.test.labels)
    with pytest.raises(AssertionError):
        feed.evaluation_inputs(feed.test.stop)


@pytest.mark.parametrize("batch_size", [3, 4])
def test_validation_batches_come_before_those_of_test(dataset, batch_size):
    held_out = dataset.split_validation(0.37, None)
    feed = BatchLoader(held_out, DataConfig(name="digits"), EpochSampler(len(held_out.train), batch_size, 1))
    assert held_out.validation is not None
    assert len(held_out.validation) % batch_size  # a last batch of its own
    assert [*feed.validation, *feed.test] == list(range(feed.test.stop))
    for part, split in ((feed.validation, held_out.validation), (feed.test, held_out.test)):
        inputs = torch.cat([feed.evaluation_inputs(e) for e in part])
        assert torch.equal(inputs, normalised(held_out, split.inputs))
        assert torch.equal(feed.labels_of(part), split.labels)
        assert sum(feed.evaluation_size(e) for e in part) == len(split)


def test_bits_do_not_depend_on_the_order_of_calls(dataset):
    feed = batches(dataset, augment=True)
    inputs = {n: feed.inputs(n) for n in range(21)}
    labels = {n: feed.labels(n) for n in range(21)}
    torch.manual_seed(5)
    again = batches(dataset, augment=True)
    for n in (20, 3, 7, 6, 7, 0, 14, 13):
        again.labels((n + 9) % 21)
        assert torch.equal(again.inputs(n), inputs[n])
        assert torch.equal(again.labels(n), labels[n])


def test_an_order_of_other_data_is_refused(dataset):
    with pytest.raises(AssertionError):
        BatchLoader(dataset, DataConfig(name="digits"), EpochSampler(TRAIN + 1, BATCH, 1))


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (2, TRAIN + TEST, 5), generator=generator)
    return Dataset(Split(*tokens[:, :TRAIN]), Split(*tokens[:, TRAIN:]), classes=7)


def test_tokens_and_their_labels(sequences):
    feed = batches(sequences)
    for n in (0, 6, 7, 20):
        indices = feed.order.indices(n)
        assert torch.equal(feed.inputs(n), sequences.train.inputs[indices])
        assert torch.equal(feed.labels(n), sequences.train.labels[indices])
        assert feed.inputs(n).shape == feed.labels(n).shape == (BATCH, 5)
        assert feed.inputs(n).dtype == feed.labels(n).dtype == torch.int64


def test_test_batches_of_tokens(sequences):
    feed = batches(sequences)
    assert [feed.evaluation_size(e) for e in feed.test] == [4, 4, 2]
    for parts, whole in (
        (feed.evaluation_inputs, sequences.test.inputs),
        (feed.evaluation_labels, sequences.test.labels),
    ):
        assert torch.equal(torch.cat([parts(e) for e in feed.test]), whole)
    assert torch.equal(feed.labels_of(feed.test), sequences.test.labels)


def test_sequences_are_not_augmented(sequences):
    with pytest.raises(ValueError, match=r"^data\.augment=true: is for images, allowed for data=reverse is false$"):
        BatchLoader(sequences, DataConfig(name="reverse", augment=True), EpochSampler(TRAIN, BATCH, 1))


def test_numbers_and_their_labels():
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Split(torch.randn(size, 6, generator=generator), torch.randint(7, (size,), generator=generator))
        for size in (TRAIN, TEST)
    )
    feed = batches(Dataset(train, test, classes=7))
    for n in (0, 6, 7, 20):
        indices = feed.order.indices(n)
        assert torch.equal(feed.inputs(n), train.inputs[indices])
        assert torch.equal(feed.labels(n), train.labels[indices])
    assert torch.equal(torch.cat([feed.evaluation_inputs(e) for e in feed.test]), test.inputs)
    assert torch.equal(feed.labels_of(feed.test), test.labels)
    with pytest.raises(ValueError, match=r"^data\.augment=true: is for images, allowed for data=digits is false$"):
        batches(Dataset(train, test, classes=7), augment=True)


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_without_test_data_there_are_no_test_batches(dataset, validation):
    untested = Dataset(dataset.train, None, dataset.classes).split_validation(validation, None)
    feed = batches(untested)
    assert len(feed.test) == 0
    assert len(feed.validation) == (2 if validation else 0)
    assert [feed.evaluation_size(e) for e in feed.validation] == ([4, 2] if validation else [])
    assert not feed.resident
    assert feed.labels_of(feed.test).tolist() == []
    with pytest.raises(AssertionError):
        feed.evaluation_inputs(feed.test.stop)


def test_data_is_resident_on_a_gpu_that_has_room_for_twice_as_much(dataset, monkeypatch):
    gpu, asked = torch.device("cuda", 1), []
    nbytes = dataset.train.inputs.nbytes + dataset.test.inputs.nbytes

    def resident(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device), (free, 80 << 30))[1])
        order = EpochSampler(len(dataset.train), BATCH, 1)
        return BatchLoader(dataset, DataConfig(name="digits"), order, gpu).resident

    assert not resident(2 * nbytes)
    assert resident(2 * nbytes + 1)
    assert asked == [gpu, gpu]
