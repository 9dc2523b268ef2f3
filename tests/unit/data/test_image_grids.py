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

REAL = os.environ.get("COUNTERFLOW_CIFAR10")
COLUMNS, ROWS = 3, 2


@pytest.fixture
def pictures():
    """By file, uint8 ``[M, 32, 32, 3]``."""
    generator = np.random.default_rng(0)
    names = [f"{split}-{c}-{part}.webp" for split in ("train", "test") for c in range(10) for part in range(2)]
    return {name: generator.integers(256, size=(COLUMNS * ROWS, 32, 32, 3), dtype=np.uint8) for name in names}


def write(folder, pictures):
    """Picture by picture into sheets, and the manifest as it was written."""
    entries = []
    for name, tiles in pictures.items():
        sheet = Image.new("RGB", (COLUMNS * 32, ROWS * 32))
        for i, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (i % COLUMNS * 32, i // COLUMNS * 32))
        sheet.save(folder / name, lossless=True, exact=True, method=0)
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


def read(root):
    return load(DataConfig(name="cifar10", root=str(root)))


def refused(root, *parts):
    with pytest.raises(ValueError, match=r"^data\.root=") as error:
        read(root)
    message = str(error.value)
    for part in (f"data.root={root}: ", *parts):
        assert part in message
    assert "\n" not in message


def test_pictures_and_labels_of_every_sheet(tmp_path, pictures):
    write(tmp_path, pictures)
    before = sorted(tmp_path.iterdir())
    dataset = read(tmp_path)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        tiles = np.concatenate([p for file, p in pictures.items() if file.startswith(name)])
        assert torch.equal(split.inputs, torch.from_numpy(tiles.transpose(0, 3, 1, 2)))
        assert split.inputs.is_contiguous()
        assert torch.equal(split.labels, torch.arange(10).repeat_interleave(2 * COLUMNS * ROWS))
    assert dataset.classes == 10
    assert sorted(tmp_path.iterdir()) == before


def test_missing_sheet(tmp_path, pictures):
    write(tmp_path, pictures)
    (tmp_path / "test-3-1.webp").unlink()
    refused(tmp_path, "test-3-1.webp cannot be read: ", "No such file")


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"<html>", lambda d: d[: len(d) // 2], lambda d: d[:40]])
def test_truncated_sheet(tmp_path, pictures, damage):
    write(tmp_path, pictures)
    path = tmp_path / "train-0-1.webp"
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, "train-0-1.webp cannot be read: ")


def test_other_pixels(tmp_path, pictures):
    write(tmp_path, pictures)
    tiles = pictures["train-7-0.webp"]
    sheet = tiles.reshape(ROWS, COLUMNS, 32, 32, 3).swapaxes(1, 2).reshape(ROWS * 32, COLUMNS * 32, 3)
    Image.fromarray(sheet).save(tmp_path / "train-7-0.webp", lossless=True, exact=True, method=0)
    read(tmp_path)
    sheet[40, 50, 2] ^= 1
    Image.fromarray(sheet).save(tmp_path / "train-7-0.webp", lossless=True, exact=True, method=0)
    refused(tmp_path, "train-7-0.webp is damaged: the sha256 of its pixels is not the one in manifest.json")


def test_sheet_of_another_size_or_mode(tmp_path, pictures):
    write(tmp_path, pictures)
    path = tmp_path / "test-0-0.webp"
    Image.new("RGB", (32, 64)).save(path, lossless=True)
    refused(tmp_path, "test-0-0.webp has shape [64, 32, 3]: manifest.json says that it is [64, 96, 3]")
    Image.new("RGBA", (96, 64)).save(path, lossless=True)
    refused(tmp_path, "test-0-0.webp has pixels of mode RGBA: must be L (grey) or RGB")


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
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("columns", None, "manifest.json cannot be read: TypeError: "),
        ("rows", "two", "manifest.json cannot be read: ValueError: "),
        ("rows", 4, "has shape [64, 96, 3]: manifest.json says that it is [128, 96, 3]"),
        ("class_index", 10, "labels out of range: train has label 10: must be 0..9"),
    ],
)
def test_other_entry(tmp_path, pictures, key, value, message):
    manifest = write(tmp_path, pictures)
    manifest["files"][0][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    refused(tmp_path, message)


@pytest.mark.skipif(not REAL, reason="COUNTERFLOW_CIFAR10 names no folder with the sheets of CIFAR-10")
def test_the_real_thing():
    dataset = read(REAL)
    mean, std = dataset.moments
    assert dataset.train.inputs.shape == (50_000, 3, 32, 32)
    assert dataset.test.inputs.shape == (10_000, 3, 32, 32)
    assert torch.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert [round(float(v) / 255, 4) for v in mean] == [0.4914, 0.4822, 0.4465]
    assert [round(float(v) / 255, 4) for v in std] == [0.2470, 0.2435, 0.2616]
