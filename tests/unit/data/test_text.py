"""Text: documents, splits and windows by hand, what is refused, and the cache under faults."""

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterflow.checksum import sha256
from counterflow.config import DATA, DataConfig
from counterflow.data import Dataset, documents, text
from counterflow.data.token_windows import TokenWindows

END = 255


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "text").mkdir()
    return replace(DATA["text"], root=str(tmp_path / "text"), cache=str(tmp_path / "cache"), length=8)


def write(config: DataConfig, **files: bytes) -> None:
    for name, content in files.items():
        (Path(config.root) / name).write_bytes(content)


def tokens(path: Path) -> list[int]:
    return list(path.read_bytes())


def cached(config: DataConfig) -> Path:
    (folder,) = (path for path in Path(config.cache).iterdir() if path.is_dir())
    return folder


def windows(dataset: Dataset) -> tuple[Tensor, Tensor]:
    return dataset.train.rows(slice(None))


def test_the_label_of_a_token_is_the_next_one(config: DataConfig) -> None:
    content = bytes(range(10, 100)) * 2
    write(config, a=content)
    dataset = text.load(config)
    inputs, labels = windows(dataset)
    assert inputs.dtype == labels.dtype == torch.int64
    assert inputs.flatten().tolist() == list(content[:160])  # of 162 for training
    assert labels.flatten().tolist() == list(content[1:161])
    assert (dataset.train.inputs.shape, dataset.classes) == ((20, 8), 256)


def test_every_document_ends_with_a_token_of_its_own(config: DataConfig) -> None:
    write(config, b=b"zwei" * 20, a="drei ß".encode() * 20)
    text.load(replace(config, validation=0.0))
    files = cached(config)
    first, second = "drei ß".encode() * 20, b"zwei" * 20  # in the order of names
    assert tokens(files / "train.bin") == [*first[:133], END, *second[:76], END]
    assert tokens(files / "test.bin") == [*first[133:], END, *second[76:], END]


def test_of_many_files_some_are_held_out_as_a_whole(config: DataConfig) -> None:
    write(config, **{f"{number:02}": bytes([65 + number]) * 20 for number in range(60)})
    dataset = text.load(config)
    assert dataset.tokens_per_byte == dict.fromkeys(documents.SPLITS, 21 / 20)
    counts = {name: tokens(cached(config) / f"{name}.bin").count(END) for name in documents.SPLITS}
    assert counts == {"train": 54, "validation": 3, "test": 3}
    letters = [set((cached(config) / f"{name}.bin").read_bytes()) - {END} for name in documents.SPLITS]
    assert not letters[0] & letters[1]
    assert not (letters[0] | letters[1]) & letters[2]


def test_evaluated_windows_are_at_even_distances(config: DataConfig) -> None:
    path = Path(config.root) / "tokens.bin"
    path.write_bytes(bytes(range(81)))
    some = TokenWindows(path, "uint8", 8, most=4)
    assert some[:][:, 0].tolist() == [0, 16, 40, 56]
    assert some.labels()[torch.tensor([1])].tolist() == [[17, 18, 19, 20, 21, 22, 23, 24]]
    assert (len(some), some.shape, some[4:].shape) == (4, (4, 8), (0, 8))


def test_a_limit_is_of_windows(config: DataConfig) -> None:
    write(config, a=bytes(1000))
    assert len(text.load(replace(config, limit=7)).train) == 7
    with pytest.raises(ValueError, match=r"^data.limit=113: must be at most 112, the windows of training$"):
        text.load(replace(config, limit=113))


def test_without_validation_nothing_is_held_out(config: DataConfig) -> None:
    write(config, a=bytes(1000))
    assert text.load(replace(config, validation=0.0)).validation is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"data.root=\S+: holds no text"),
        ({"a": b""}, r"data.root=\S+: holds no text"),
        ({"a": b"x" * 90, "b": b"gr\xfc\xdfe"}, r"data.root=\S+: b is no UTF-8: its byte 2 is 0xfc"),
        ({"a": b"x" * 90, "b": b"\xff"}, r"data.root=\S+: b is no UTF-8: its byte 0 is 0xff"),
        ({"a": b"x" * 90, "b": b"cut \xe2\x82"}, r"data.root=\S+: b is no UTF-8: its byte 4 is 0xe2"),
        ({"a": b"x" * 99}, "data.length=8: must be less than 5, the tokens of the validation data"),
    ],
)
def test_refused(config: DataConfig, files: dict[str, bytes], message: str) -> None:
    write(config, **files)
    with pytest.raises(ValueError, match=f"^{message}"):
        text.load(config)
    assert not list(Path(config.cache).glob(".*")), "nothing half written stays"


def test_an_empty_file_among_others_is_left_out(config: DataConfig) -> None:
    write(config, a=b"", b=b"x" * 200)
    text.load(replace(config, validation=0.0))
    assert tokens(cached(config) / "train.bin") == [*b"x" * 190, END]


def test_a_root_may_be_one_file_and_must_be_there(config: DataConfig, tmp_path: Path) -> None:
    write(config, a=b"y" * 500, b=b"x" * 500)
    alone = text.load(replace(config, root=f"{config.root}/a"))
    assert windows(alone)[0].unique().tolist() == [ord("y")]
    with pytest.raises(ValueError, match=r"^data.root=\S+/c: is not there; allowed are a text file and a folder"):
        text.load(replace(config, root=f"{config.root}/c"))


def test_a_file_that_changes_meanwhile_is_refused_and_leaves_nothing(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config, a=b"x" * 200)
    parts = documents._parts

    def grow(size: int, *others: Any) -> Any:
        (Path(config.root) / "a").write_bytes(b"x" * 204)
        return parts(size, *others)

    monkeypatch.setattr(documents, "_parts", grow)
    with pytest.raises(ValueError, match=r"^data.root=\S+: a changed while it was read$"):
        text.load(config)
    assert [path for path in Path(config.cache).iterdir() if path.is_dir()] == []
    monkeypatch.undo()
    assert len(text.load(config).train) == (200 + 4 - 2 * 10) // 8


def test_another_text_is_another_cache_and_another_digest(config: DataConfig) -> None:
    write(config, a=b"x" * 200)
    first = text.load(config)
    write(config, a=b"x" * 199 + b"y")
    os.utime(Path(config.root) / "a", ns=(1, 1))
    second = text.load(config)
    assert first.digest != second.digest


@pytest.mark.parametrize("damage", ["flip", "truncate", "manifest", "no manifest", "foreign"])
def test_a_damaged_cache_is_written_again(config: DataConfig, damage: str) -> None:
    write(config, a=b"abc" * 100)
    whole = windows(text.load(config))[0]
    path, manifest = cached(config) / "train.bin", cached(config) / "manifest.json"
    match damage:
        case "flip":
            content = bytearray(path.read_bytes())
            content[7] ^= 1
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(path.read_bytes()[:-1])
        case "manifest":
            manifest.write_text("{")
        case "no manifest":
            manifest.unlink()
        case _:
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    assert torch.equal(windows(text.load(config))[0], whole)


def test_a_file_is_read_in_pieces_that_may_end_within_a_character(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "größer als €".encode() * 20
    write(config, a=content)
    monkeypatch.setattr(documents, "_CHUNK", 3)
    text.load(config)
    parts = [tokens(cached(config) / f"{name}.bin")[:-1] for name in documents.SPLITS]
    assert b"".join(map(bytes, parts)) == content
    write(config, a=content + b"\x82")
    with pytest.raises(ValueError, match=rf"a is no UTF-8: its byte {len(content)} is 0x82$"):
        text.load(config)


def test_a_root_may_be_a_cache(config: DataConfig, tmp_path: Path) -> None:
    write(config, a=b"abc" * 100)
    whole = text.load(config)
    moved = cached(config).rename(tmp_path / "moved")
    again = text.load(replace(config, root=str(moved)))
    assert torch.equal(windows(again)[0], windows(whole)[0])
    assert again.digest == whole.digest
    (moved / "train.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"^data.root=\S+: its files are not the tokens that manifest.json describes$"):
        text.load(replace(config, root=str(moved)))


def test_a_cache_that_cannot_be_written(config: DataConfig) -> None:
    write(config, a=b"abc" * 100)
    Path(config.cache).write_text("a file")
    with pytest.raises(ValueError, match=r"^data.cache=\S+: cannot be written \(File exists\)$"):
        text.load(config)


def _digest(config: DataConfig) -> str:
    return text.load(config).digest


def test_several_processes_share_one_cache(config: DataConfig) -> None:
    write(config, **{f"{number}": b"some text\n" * 2000 for number in range(20)})
    with ProcessPoolExecutor(3) as processes:
        digests = set(processes.map(_digest, [config] * 6))
    assert len(digests) == 1
    assert len([path for path in Path(config.cache).iterdir() if path.is_dir()]) == 1


def test_the_standard_library_is_a_text(tmp_path: Path) -> None:
    dataset = text.load(replace(DATA["stdlib"], cache=str(tmp_path)))
    assert dataset.validation is not None
    assert dataset.test is not None
    assert 8e6 < len(dataset.train) * 128 < 2e7
    assert len(dataset.validation) == len(dataset.test) == 1024
    assert b"import" in bytes(dataset.train.rows(slice(0, 300))[0].flatten().tolist())


MEASURE = """
import sys
from dataclasses import replace
from counterflow.config import DATA
from counterflow.data import load
from counterflow.data.batch_loader import BatchLoader, EpochSampler
config = replace(DATA["text"], root=sys.argv[1])
dataset = load(config)
batches = BatchLoader(dataset, config, EpochSampler(len(dataset.train), 64, 1))
for n in range(100):
    batches.inputs(n), batches.labels(n)
print(len(dataset.train), next(line.split()[1] for line in open("/proc/self/status") if "RssAnon" in line))
"""


def test_private_memory_does_not_depend_on_the_size_of_the_text(tmp_path: Path) -> None:
    """300 KB, and 20 GB of a file that takes no room on the disk."""
    found = []
    for name, size in (("small", 300_000), ("large", 20 << 30)):
        folder = tmp_path / name
        folder.mkdir()
        sizes = {"train": size, "validation": 1000, "test": 1000}
        for split, tokens_of_split in sizes.items():
            (folder / f"{split}.bin").touch()
            os.truncate(folder / f"{split}.bin", tokens_of_split)
        sums = {split: sha256(folder / f"{split}.bin") if sizes[split] < 1 << 20 else "" for split in sizes}
        manifest = {"format": 1, "tokens": sizes, "bytes": sizes, "sha256": sums}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        output = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, check=True).stdout
        found.append([int(number) for number in output.split()])
    (small_windows, small), (large_windows, large) = found
    assert (small_windows, large_windows) == (2343, 167_772_159)
    assert large < small + 20_000, "KiB"
