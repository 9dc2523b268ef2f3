import hashlib
import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision import datasets

from counterflow.config import DataConfig
from counterflow.data import load
from tests.helpers.data import assert_refused, serve

NAMES = ("cifar10", "cifar100")
META = {"cifar10": "batches.meta", "cifar100": "meta"}
EACH = 6
"""Images a file."""


def files(name):
    """Every file of the data set, smaller: ``{file: content as pickled}``."""
    cifar, generator = getattr(datasets, name.upper()), np.random.default_rng(0)
    key, classes = {"cifar10": ("labels", 10), "cifar100": ("fine_labels", 100)}[name]
    content = {
        file: {
            "data": generator.integers(256, size=(EACH, 3 * 32 * 32), dtype=np.uint8),
            key: generator.integers(classes, size=EACH).tolist(),
        }
        for file, _ in (*cifar.train_list, *cifar.test_list)
    }
    return {**content, META[name]: {cifar.meta["key"]: [f"class {c}" for c in range(classes)]}}


@pytest.fixture(params=NAMES)
def cifar(request, monkeypatch):
    """The name of a data set whose checksums are those of `files`, its folder, and the files as bytes."""
    source = getattr(datasets, request.param.upper())
    packed = {file: pickle.dumps(content) for file, content in files(request.param).items()}
    md5 = {file: hashlib.md5(data).hexdigest() for file, data in packed.items()}
    for kind in ("train_list", "test_list"):
        monkeypatch.setattr(source, kind, [[file, md5[file]] for file, _ in getattr(source, kind)])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5[META[request.param]]})
    return request.param, source.base_folder, packed


def write(folder, packed):
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in packed.items():
        (folder / file).write_bytes(data)


def read(name, root, download=False):
    return load(DataConfig(name=name, root=str(root), download=download))


def check(dataset, name):
    *train, test = [content for file, content in files(name).items() if file != META[name]]
    for split, parts in ((dataset.train, train), (dataset.test, [test])):
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = [label for part in parts for key in part if key.endswith("labels") for label in part[key]]
        assert torch.equal(split.inputs, torch.from_numpy(images))
        assert split.inputs.is_contiguous()
        assert split.labels.tolist() == labels
    assert dataset.classes == int(name.removeprefix("cifar"))


def refused(name, root, *parts, download=False):
    config = DataConfig(name=name, root=str(root), download=download)
    assert_refused(config, f"the files of data={name}", "data.download=true", *parts)


def test_reads_what_torchvision_keeps_and_writes_nothing(tmp_path, cifar):
    name, folder, packed = cifar
    write(tmp_path / folder, packed)
    before = sorted(tmp_path.rglob("*"))
    check(read(name, tmp_path), name)
    check(read(name, tmp_path, download=True), name)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_folder(tmp_path, cifar):
    name, folder, _ = cifar
    refused(name, tmp_path / "nowhere", f"{folder}/", "is missing")
    assert not (tmp_path / "nowhere").exists()


def test_missing_file(tmp_path, cifar):
    name, folder, packed = cifar
    for file in packed:
        write(tmp_path / folder, packed)
        (tmp_path / folder / file).unlink()
        refused(name, tmp_path, f"{folder}/{file} is missing")


def test_damaged_file_is_not_unpickled(tmp_path, cifar):
    name, folder, packed = cifar
    for file, data in packed.items():
        for damaged in (b"", data[:-1], data[:100] + b"?" + data[101:], pickle.dumps(print)):
            write(tmp_path / folder, {**packed, file: damaged})
            refused(name, tmp_path, f"{folder}/{file} is damaged: its md5 is not that of the original")


@pytest.fixture
def mirror(tmp_path, cifar, monkeypatch):
    """A folder that torchvision downloads from, by a web server on this machine."""
    name, base, packed = cifar
    source, folder = getattr(datasets, name.upper()), tmp_path / "mirror"
    folder.mkdir()
    archive = folder / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        for file, data in packed.items():
            info = tarfile.TarInfo(f"{base}/{file}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(folder) as url:
        monkeypatch.setattr(source, "url", f"{url}{source.filename}")
        yield archive


def test_downloads_only_if_asked_and_only_once(tmp_path, cifar, mirror):
    name, folder, packed = cifar
    root = tmp_path / "new" / "root"
    refused(name, root, "is missing")
    check(read(name, root, download=True), name)
    mirror.unlink()
    check(read(name, root), name)
    check(read(name, root, download=True), name)
    assert sorted(path.name for path in root.rglob("*")) == sorted([folder, *packed])


def test_download_replaces_a_damaged_file(tmp_path, cifar, mirror):
    name, folder, packed = cifar
    write(tmp_path / folder, {**packed, META[name]: b"half a file"})
    check(read(name, tmp_path, download=True), name)


def test_ranks_may_download_at_the_same_time(tmp_path, cifar, mirror):
    name, *_ = cifar
    with ThreadPoolExecutor(4) as ranks:
        for dataset in ranks.map(lambda _: read(name, tmp_path / "root", download=True), range(4)):
            check(dataset, name)


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_failed_download_leaves_no_file(tmp_path, cifar, mirror, damage):
    if damage == "missing":
        mirror.unlink()
    else:
        mirror.write_bytes(b"<html>not found</html>")
    name, *_ = cifar
    root = tmp_path / "root"
    refused(name, root, "the download failed: ", download=True)
    assert not [path for path in root.rglob("*") if path.is_file()]
