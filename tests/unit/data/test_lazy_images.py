"""Images that are read by batch: the same as in memory."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import counterflow.data.dataset
from counterflow.config import DataConfig
from counterflow.data import load
from counterflow.data.batch_loader import BatchKey, BatchLoader, EpochSampler
from counterflow.data.items import Items
from counterflow.data.mapped_images import mapped_member
from counterflow.data.reader_pool import ReaderPool

CLASSES = ("ant", "bee", "cow")
GENERATOR = np.random.default_rng(0)
ARRAYS = {
    f"{split}_{kind}": array
    for split, size in (("train", 40), ("test", 10))
    for kind, array in (
        ("images", GENERATOR.integers(256, size=(size, 5, 7, 3), dtype=np.uint8)),
        ("labels", np.arange(size) % 3),
    )
}


def folders(root):
    for split in ("train", "test"):
        for i, (pixels, label) in enumerate(zip(ARRAYS[f"{split}_images"], ARRAYS[f"{split}_labels"], strict=True)):
            path = root / split / CLASSES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def npy(root):
    for name, array in ARRAYS.items():
        np.save(root / f"{name}.npy", array)


def npz(root):
    np.savez(root / "a.npz", **ARRAYS)


def compressed(root):
    np.savez_compressed(root / "a.npz", **ARRAYS)


def fortran(root):
    npy(root)
    np.save(root / "train_images.npy", np.asfortranarray(ARRAYS["train_images"]))


FORMS = [folders, npy, npz, compressed, fortran]


def config(root, **options):
    return DataConfig(name="image_folder", root=str(root), **options)


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("options", [{}, {"validation": 0.3, "limit": 20}])
def test_samples_and_checksum_are_those_in_memory(tmp_path, write, options):
    write(tmp_path)
    known, lazy = load(config(tmp_path, **options)), load(config(tmp_path, workers=1, **options))
    for name in ("train", "test", "validation"):
        one, other = getattr(known, name), getattr(lazy, name)
        if one is None:
            assert other is None
            continue
        assert isinstance(one.inputs, torch.Tensor)
        assert isinstance(other.inputs, Items)
        assert torch.equal(one.inputs, other.inputs[:])
        assert torch.equal(one.labels, other.labels)
        rows = torch.tensor([3, 0, 3, 5])
        assert torch.equal(one.inputs[rows], other.inputs[rows])
    assert known.digest == lazy.digest
    assert known.class_names == lazy.class_names
    assert all(map(torch.equal, known.moments, lazy.moments))


def test_moments_are_of_images_at_even_distances(tmp_path, monkeypatch):
    npy(tmp_path)
    monkeypatch.setattr(counterflow.data.dataset, "MEASURED", 16)
    mean, _ = load(config(tmp_path, workers=1)).moments
    chosen = ARRAYS["train_images"][[i * 40 // 16 for i in range(16)]]
    torch.testing.assert_close(mean, torch.from_numpy(chosen.mean((0, 1, 2))).float())


@pytest.fixture(params=[1, 2])
def pool(request):
    pools = []

    def start(batches):
        sources = {name: source for name, source in batches.sources.items() if isinstance(source, Items)}
        pools.append(ReaderPool(request.param, sources, 20.0))
        return replace(batches, workers=pools[-1])

    yield start
    for one in pools:
        one.close()


def loader(root, workers, **options):
    options = {"validation": 0.2, "augment": True, "test_views": 2, **options}
    data = config(root, workers=workers, **options)
    dataset = load(data)
    return BatchLoader(dataset, data, EpochSampler(len(dataset.train), 6, 1))


def keys(batches, first=0):
    found = [BatchKey(n) for n in range(first, 13)]
    found[5:5] = [BatchKey(e, True) for e in batches.validation]
    return found + [BatchKey(e, True) for e in batches.test]


@pytest.mark.parametrize("write", FORMS)
def test_batches_are_those_in_memory(tmp_path, write, pool):
    write(tmp_path)
    known, lazy = loader(tmp_path, 0), pool(loader(tmp_path, 1))
    for first in (0, 9):  # a run that goes on begins with its batch
        order = keys(known, first)
        for field in ("inputs", "labels"):
            pairs = zip(known.stream(field, order, order), lazy.stream(field, order, order), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(known.inputs(3), lazy.inputs(3))  # in this process
    assert torch.equal(known.first_inputs(7), lazy.first_inputs(7))
    assert torch.equal(known.labels_of(known.test), lazy.labels_of(lazy.test))
    assert lazy.example.shape == known.example.shape


def test_batches_that_were_not_expected(tmp_path, pool):
    npy(tmp_path)
    known, lazy = loader(tmp_path, 0), pool(loader(tmp_path, 1))
    expected, order = keys(known), [*keys(known)[:7], *keys(known)[-2:]]
    found = list(lazy.stream("inputs", iter(order), iter(expected)))
    assert len(found) == len(order)
    assert all(map(torch.equal, found, known.stream("inputs", order, order)))


def test_an_image_that_is_damaged_later_is_named(tmp_path, pool):
    folders(tmp_path)
    batches = pool(loader(tmp_path, 1))
    name = batches.dataset.train.inputs.name(5)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-40])
    order = [BatchKey(n) for n in range(12)]
    with pytest.raises(ValueError, match=rf"^{name} cannot be read: [^\n]*$"):
        list(batches.stream("inputs", order, order))


def test_an_image_of_another_size_is_named(tmp_path, pool):
    folders(tmp_path)
    batches = pool(loader(tmp_path, 1))
    os.replace(tmp_path / "test" / "ant" / "0.png", tmp_path / "kept.png")
    Image.fromarray(np.zeros((7, 5, 3), dtype=np.uint8)).save(tmp_path / "test" / "ant" / "0.png")
    order = [BatchKey(e, True) for e in batches.test]
    with pytest.raises(ValueError, match=r"^test/ant/0.png has height, width and channels \[7, 5, 3\]: must be"):
        list(batches.stream("inputs", order, order))


def test_workers_have_nothing_to_read():
    data = DataConfig(name="digits", workers=2)
    with pytest.raises(ValueError, match=r"^data.workers=2: .* allowed for data=digits is 0$"):
        BatchLoader(load(data), data, EpochSampler(1437, 6, 1))
    with pytest.raises(ValueError, match=r"^data.workers=-1: must be at least 0 and at most 256$"):
        DataConfig(name="digits", workers=-1)


def test_an_array_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="a holds objects"):
        mapped_member(tmp_path / "a.npz", "a")


def test_only_stored_arrays_are_mapped(tmp_path):
    npz(tmp_path)
    assert isinstance(mapped_member(tmp_path / "a.npz", "train_images"), np.memmap)
    compressed(tmp_path)
    assert not isinstance(mapped_member(tmp_path / "a.npz", "train_images"), np.memmap)
