import gzip
import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from counterflow.config import DataConfig
from counterflow.data import load
from counterflow.data.image_files import FILES, TORCHVISION
from tests.helpers.data import assert_refused, serve

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = 12, 5


def idx_bytes(tensor, magic=None):
    magic = 0x0800 + tensor.ndim if magic is None else magic
    return struct.pack(f">{1 + tensor.ndim}I", magic, *tensor.shape) + bytes(tensor.flatten().tolist())


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(256, (size, 6, 4), generator=generator) if "images" in name else torch.arange(size) % 10
        for name, size in zip(FILES, (TRAIN, TRAIN, TEST, TEST), strict=True)
    }


def write(folder, arrays, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(tensor)))
        else:
            (folder / name).write_bytes(idx_bytes(tensor))


def read(root, name="fashion_mnist", download=False):
    return load(DataConfig(name=name, root=str(root), download=download))


def check(dataset, arrays):
    for split, (images, labels) in ((dataset.train, FILES[:2]), (dataset.test, FILES[2:])):
        assert torch.equal(split.inputs, arrays[images].to(torch.uint8).unsqueeze(1))
        assert torch.equal(split.labels, arrays[labels])
    assert dataset.classes == 10


def refused(root, *parts, name="fashion_mnist", download=False):
    config = DataConfig(name=name, root=str(root), download=download)
    assert_refused(config, "data.download=true", f"a folder with the four files of data={name}", *parts)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "below"),
    [("mnist", "."), ("fashion_mnist", "."), ("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")],
)
def test_reads_the_four_files_and_writes_nothing(tmp_path, arrays, packed, name, below):
    write(tmp_path / below, arrays, packed)
    before = sorted(tmp_path.rglob("*"))
    check(read(tmp_path, name), arrays)
    check(read(tmp_path, name, download=True), arrays)
    assert sorted(tmp_path.rglob("*")) == before


def test_gzip_and_unpacked_may_be_mixed(tmp_path, arrays):
    write(tmp_path, arrays)
    packed = tmp_path / f"{FILES[1]}.gz"
    (tmp_path / FILES[1]).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    check(read(tmp_path), arrays)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(tmp_path, arrays, name):
    write(tmp_path, arrays)
    (tmp_path / f"{name}.gz").unlink()
    refused(tmp_path, f"{name}[.gz] is missing")


@pytest.mark.parametrize("name", TORCHVISION)
def test_missing_folder(tmp_path, name):
    refused(tmp_path / "nowhere", f"{FILES[0]}[.gz] is missing", name=name)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: gzip.compress(data)[:-12], ".gz cannot be read: Compressed file ended"),
        (lambda data: b"<html>not found</html>", ".gz cannot be read: Not a gzipped file"),
        (lambda data: gzip.compress(data)[:-8] + bytes(8), ".gz cannot be read: CRC check failed"),
        (lambda data: b"", ".gz has 0 bytes"),
        (lambda data: gzip.compress(data[:6]), ".gz has 6 bytes: must be at least"),
        (lambda data: gzip.compress(b"\0\0\x0d" + data[3:]), ".gz has magic number 33"),
        (lambda data: gzip.compress(b"\0\0\x08\x02" + data[4:]), ".gz has magic number 2050: must be 20"),
        (lambda data: gzip.compress(data[:-1]), " bytes: must be "),
        (lambda data: gzip.compress(data + b"\0"), " bytes: must be "),
        (lambda data: gzip.compress(data[:4] + bytes(4) + data[8:]), ".gz has shape [0"),
    ],
)
def test_damaged_file(tmp_path, arrays, name, damage, message):
    write(tmp_path, arrays)
    (tmp_path / f"{name}.gz").write_bytes(damage(idx_bytes(arrays[name])))
    refused(tmp_path, name, message)


def test_damaged_deflate_stream(tmp_path, arrays):
    write(tmp_path, arrays)
    path = tmp_path / f"{FILES[0]}.gz"
    data = bytearray(path.read_bytes())
    data[10] = 0xFF
    path.write_bytes(data)
    refused(tmp_path, f"{FILES[0]}.gz cannot be read: ")


def test_each_has_a_folder_of_its_own(tmp_path, arrays):
    write(tmp_path / "MNIST/raw", arrays)
    refused(tmp_path, f"{FILES[0]}[.gz] is missing")


def test_number_of_labels_is_not_that_of_images(tmp_path, arrays):
    arrays[FILES[3]] = arrays[FILES[3]][:-1]
    write(tmp_path, arrays)
    refused(tmp_path, f"{FILES[3]}.gz has 4 labels: must be 5, one an image of {FILES[2]}.gz")


def test_label_ten(tmp_path, arrays):
    arrays[FILES[3]][-1] = 10
    write(tmp_path, arrays)
    refused(tmp_path, "labels out of range: test has label 10: must be 0..9")


@pytest.fixture
def mirror(tmp_path, arrays, monkeypatch):
    """A folder that torchvision downloads from, by a web server on this machine."""
    folder = tmp_path / "mirror"
    write(folder, arrays)
    resources = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in FILES]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(folder) as url:
        for name in TORCHVISION.values():
            monkeypatch.setattr(getattr(datasets, name), "resources", resources)
            monkeypatch.setattr(getattr(datasets, name), "mirrors", [url])
        yield folder


@pytest.mark.parametrize("name", TORCHVISION)
def test_downloads_only_if_asked_and_only_once(tmp_path, arrays, mirror, name):
    root = tmp_path / "new" / "root"
    refused(root, "is missing", name=name)
    check(read(root, name, download=True), arrays)
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == sorted(FILES)
    assert [path.name for path in root.iterdir()] == [TORCHVISION[name]]
    for path in mirror.iterdir():
        path.unlink()
    check(read(root, name, download=True), arrays)
    assert torch.equal(getattr(datasets, TORCHVISION[name])(root, train=True).targets, arrays[FILES[1]])


def test_download_replaces_an_incomplete_one(tmp_path, arrays, mirror):
    root = tmp_path / "root"
    raw = root / "FashionMNIST" / "raw"
    write(raw, arrays, packed=False)
    (raw / FILES[0]).write_bytes(b"half a file")
    (raw / FILES[3]).unlink()
    check(read(root, download=True), arrays)


def test_ranks_may_download_at_the_same_time(tmp_path, arrays, mirror):
    with ThreadPoolExecutor(4) as ranks:
        for dataset in ranks.map(lambda _: read(tmp_path / "root", download=True), range(4)):
            check(dataset, arrays)


def test_failed_download_leaves_no_file(tmp_path, mirror):
    (mirror / f"{FILES[2]}.gz").unlink()
    root = tmp_path / "root"
    refused(root, "the download failed: ", f"{FILES[2]}.gz", download=True)
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_download_into_what_is_not_a_folder(tmp_path, mirror):
    root = tmp_path / "file"
    root.write_text("")
    refused(root, "the download failed: ", download=True)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"{DEBIAN} is missing: apt-get install dataset-fashion-mnist")
def test_the_real_thing():
    dataset = read(DEBIAN)
    assert dataset.train.inputs.shape == (60_000, 1, 28, 28)
    assert dataset.test.inputs.shape == (10_000, 1, 28, 28)
    assert torch.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert [round(float(v) / 255, 4) for v in torch.cat(dataset.moments)] == [0.2860, 0.3530]
