import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterflow.config import DataConfig
from counterflow.data import load
from tests.helpers.data import assert_refused

REAL = os.environ.get("COUNTERFLOW_CIFAR10")
COLUMNS, ROWS = 3, 2


@pytest.fixture
def images():
    """By file, uint8 ``[M, 32, 32, 3]``."""
    generator = np.random.default_rng(0)
    names = [f"{split}-{c}-{part}.webp" for split in ("train", "test") for c in range(10) for part in range(2)]
    return {name: generator.integers(256, size=(COLUMNS * ROWS, 32, 32, 3), dtype=np.uint8) for name in names}


def write(folder, images):
    """Write the grids tile by tile; returns the manifest."""
    entries = []
    for name, tiles in images.items():
        grid = Image.new("RGB", (COLUMNS * 32, ROWS * 32))
        for i, tile in enumerate(tiles):
            grid.paste(Image.fromarray(tile), (i % COLUMNS * 32, i // COLUMNS * 32))
        grid.save(folder / name, lossless=True, exact=True, method=0)
        split, label, part = Path(name).stem.split("-")
        entries.append(
            {
                "file": name,
                "split": split,
                "class_index": int(label),
                "class_name": f"class {label}",
                "part": int(part),
                "count": len(tiles),
                "columns": COLUMNS,
                "rows": ROWS,
                "sha256": hashlib.sha256(tiles.tobytes()).hexdigest(),
            }
        )
    manifest = {"classes": [f"class {c}" for c in range(10)], "files": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def config(root):
    return DataConfig(name="cifar10", root=str(root))


def test_images_and_labels_of_every_grid(tmp_path, images):
    write(tmp_path, images)
    before = sorted(tmp_path.iterdir())
    dataset = load(config(tmp_path))
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        tiles = np.concatenate([p for file, p in images.items() if file.startswith(name)])
        assert torch.equal(split.inputs, torch.from_numpy(tiles.transpose(0, 3, 1, 2)))
        assert split.inputs.is_contiguous()
        assert torch.equal(split.labels, torch.arange(10).repeat_interleave(2 * COLUMNS * ROWS))
    assert dataset.classes == 10
    assert sorted(tmp_path.iterdir()) == before


def test_missing_grid(tmp_path, images):
    write(tmp_path, images)
    (tmp_path / "test-3-1.webp").unlink()
    assert_refused(config(tmp_path), "test-3-1.webp cannot be read: ", "No such file")


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"<html>", lambda d: d[: len(d) // 2], lambda d: d[:40]])
def test_truncated_grid(tmp_path, images, damage):
    write(tmp_path, images)
    path = tmp_path / "train-0-1.webp"
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(config(tmp_path), "train-0-1.webp cannot be read: ")


def test_other_pixels(tmp_path, images):
    write(tmp_path, images)
    tiles = images["train-7-0.webp"]
    grid = tiles.reshape(ROWS, COLUMNS, 32, 32, 3).swapaxes(1, 2).reshape(ROWS * 32, COLUMNS * 32, 3)
    Image.fromarray(grid).save(tmp_path / "train-7-0.webp", lossless=True, exact=True, method=0)
    load(config(tmp_path))
    grid[40, 50, 2] ^= 1
    Image.fromarray(grid).save(tmp_path / "train-7-0.webp", lossless=True, exact=True, method=0)
    assert_refused(
        config(tmp_path), "train-7-0.webp is damaged: the sha256 of its pixels is not the one in manifest.json"
    )


def test_grid_of_another_size_or_mode(tmp_path, images):
    write(tmp_path, images)
    path = tmp_path / "test-0-0.webp"
    Image.new("RGB", (32, 64)).save(path, lossless=True)
    assert_refused(config(tmp_path), "test-0-0.webp has shape [64, 32, 3]: manifest.json says that it is [64, 96, 3]")
    Image.new("RGBA", (96, 64)).save(path, lossless=True)
    assert_refused(config(tmp_path), "test-0-0.webp has pixels of mode RGBA: must be L (grey) or RGB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "manifest.json cannot be read: JSONDecodeError: "),
        ('{"files": [', "manifest.json cannot be read: JSONDecodeError: "),
        ("[]", "manifest.json cannot be read: TypeError: "),
        ("{}", "manifest.json cannot be read: KeyError: 'files'"),
        ('{"files": [{"file": "a.webp"}]}', "manifest.json cannot be read: KeyError: 'split'"),
        ('{"files": []}', "manifest.json lists no file of split train"),
    ],
)
def test_other_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    assert_refused(config(tmp_path), message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("columns", None, "manifest.json cannot be read: TypeError: "),
        ("rows", "two", "manifest.json cannot be read: ValueError: "),
        ("rows", 4, "has shape [64, 96, 3]: manifest.json says that it is [128, 96, 3]"),
        ("class_index", 10, "labels out of range: train has label 10: must be 0..9"),
    ],
)
def test_other_entry(tmp_path, images, key, value, message):
    manifest = write(tmp_path, images)
    manifest["files"][0][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(config(tmp_path), message)


@pytest.mark.skipif(not REAL, reason="COUNTERFLOW_CIFAR10 names no folder with the image grids of CIFAR-10")
def test_the_real_thing():
    dataset = load(config(REAL))
    mean, std = dataset.moments
    assert dataset.train.inputs.shape == (50_000, 3, 32, 32)
    assert dataset.test.inputs.shape == (10_000, 3, 32, 32)
    assert torch.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert [round(float(v) / 255, 4) for v in mean] == [0.4914, 0.4822, 0.4465]
    assert [round(float(v) / 255, 4) for v in std] == [0.2470, 0.2435, 0.2616]
