"""Inputs from files: what a network can take, and one line for what it cannot."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterflow.inference.inputs import read_samples
from counterflow.inference.predictor import Predictor

LEFT = np.array([[200, 50, 0]] * 4, dtype=np.uint8)


def save(path: Path, array: np.ndarray = LEFT) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def test_images_files_and_folders_are_read_in_order(images: Predictor, refused: list[str], tmp_path: Path) -> None:
    save(tmp_path / "folder/b.png")
    save(tmp_path / "folder/a.bmp", LEFT[:, ::-1])
    (tmp_path / "folder/notes.txt").write_text("no image")
    one = save(tmp_path / "one.png")
    samples = list(read_samples([one, tmp_path / "folder"], images, refused.append))
    assert [Path(sample.name).name for sample in samples] == ["one.png", "a.bmp", "b.png"]
    assert samples[0].inputs.shape == (1, 4, 3)
    assert torch.equal(samples[1].inputs[0], samples[0].inputs[0].flip(1))
    assert not refused


def test_colour_becomes_what_the_network_was_trained_on(
    images: Predictor, refused: list[str], image_file: Path
) -> None:
    save(image_file, np.dstack([LEFT] * 3))
    (sample,) = read_samples([image_file], images, refused.append)
    assert torch.equal(sample.inputs[0], torch.from_numpy(LEFT))


def test_another_size_needs_resizing(images: Predictor, refused: list[str], image_file: Path) -> None:
    save(image_file, np.kron(LEFT, np.ones((2, 2), dtype=np.uint8)))
    assert not list(read_samples([image_file], images, refused.append))
    assert refused == [f"{image_file}: has 6x8 pixels: must be 3x4, or --resize"]
    (sample,) = read_samples([image_file], images, refused.append, resize=True)
    assert sample.inputs.shape == (1, 4, 3)
    assert int(sample.inputs[0, 0, 0]) > int(sample.inputs[0, 0, 2])


def test_bad_files_are_left_out_and_others_go_on(images: Predictor, refused: list[str], tmp_path: Path) -> None:
    good = save(tmp_path / "good.png")
    broken, missing, empty = tmp_path / "broken.png", tmp_path / "missing.png", tmp_path / "empty"
    broken.write_bytes(good.read_bytes()[:40])
    empty.mkdir()
    paths = [broken, missing, empty, good]
    assert [sample.name for sample in read_samples(paths, images, refused.append)] == [str(good)]
    assert [line.partition(": ")[0] for line in refused] == [str(broken), str(missing), str(empty)]
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 1)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_rows_of_arrays_are_samples(
    images: Predictor, refused: list[str], tmp_path: Path, shape: tuple[int, ...], suffix: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    array = np.stack([LEFT, LEFT[:, ::-1]]).reshape(shape)
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez(path, images=array, labels=np.zeros(2))
    samples = list(read_samples([path], images, refused.append))
    assert [sample.name for sample in samples] == [f"{path}[0]", f"{path}[1]"]
    assert torch.equal(samples[0].inputs[0], torch.from_numpy(LEFT))


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((2, 4, 3)), r"has float64 \[2, 4, 3, 1\]: must be uint8 \[M, 4, 3, 1\]"),
        (np.zeros((2, 3, 4), np.uint8), r"has uint8 \[2, 3, 4, 1\]"),
        (np.zeros((4, 3, 1), np.uint8), r"has uint8 \[4, 3, 1, 1\]"),
        (np.zeros((), np.uint8), "has uint8"),
    ],
)
def test_arrays_of_another_kind_are_refused(
    images: Predictor, refused: list[str], tmp_path: Path, array: np.ndarray, error: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    assert not list(read_samples([tmp_path / "x.npy"], images, refused.append))
    assert len(refused) == 1
    assert re.search(error, refused[0])


def test_tokens_that_the_network_does_not_know_are_refused(
    tokens: Predictor, refused: list[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.array([[0, 1, 1], [0, 2, 1], [1, -1, 0], [1, 1, 1]], dtype=np.int32))
    samples = list(read_samples([tmp_path / "x.npy"], tokens, refused.append))
    assert [sample.inputs.tolist() for sample in samples] == [[0, 1, 1], [1, 1, 1]]
    assert refused == [f"{tmp_path}/x.npy[{row}]: has tokens outside 0..1" for row in (1, 2)]


def test_images_are_not_for_a_network_of_tokens(tokens: Predictor, refused: list[str], image_file: Path) -> None:
    assert not list(read_samples([save(image_file)], tokens, refused.append))
    assert refused == [f"{image_file}: the network was not trained on images; give a .npy or .npz file"]


def test_a_file_of_several_arrays_needs_a_name(images: Predictor, refused: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=LEFT, b=LEFT)
    assert not list(read_samples([tmp_path / "x.npz"], images, refused.append))
    assert refused == [f"{tmp_path}/x.npz: holds a, b: must hold one array, or one named inputs, images, test_images"]
