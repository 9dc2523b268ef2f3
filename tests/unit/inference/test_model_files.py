"""Files of a trained network: what is damaged, foreign or missing is refused in one line."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from counterflow.inference.model_files import DESCRIPTION, NETWORK, READOUTS, ModelDescription, ModelFiles

DESCRIBED = ModelDescription(
    model={"name": "mlp"},
    algorithm={"name": "bp"},
    cut=[1],
    input_shape=[2],
    input_type="float32",
    mean=None,
    std=None,
    label_shape=[],
    class_names=["no", "yes"],
    parameters=["b", "a"],
    unused=[],
    exits=[1],
    predicts_down=False,
    fingerprint="f",
)
WEIGHTS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ModelFiles(DESCRIBED, WEIGHTS, {"block.1.readout.w": torch.ones(2)}).write(tmp_path)
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    files = ModelFiles.read(folder)
    assert list(files.description.parameters) == ["b", "a"]
    assert files.description.class_names == ["no", "yes"]
    assert files.network.keys() == WEIGHTS.keys()
    assert all(torch.equal(files.network[name], tensor) for name, tensor in WEIGHTS.items())
    assert torch.equal(files.readouts["block.1.readout.w"], torch.ones(2))


def test_the_files_hold_nothing_that_runs(folder: Path) -> None:
    json.loads((folder / DESCRIPTION).read_text())
    for name in (NETWORK, READOUTS):  # a length, a header in JSON, and numbers
        content = (folder / name).read_bytes()
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@pytest.mark.parametrize("name", [NETWORK, READOUTS])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_weights_are_refused(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=rf"^\S*{name}: is not the file that the run wrote \(.*\)$"):
        ModelFiles.read(folder)


@pytest.mark.parametrize("name", [NETWORK, READOUTS])
def test_missing_weights_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"^\S*{name}: cannot be read \(No such file or directory\)$"):
        ModelFiles.read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 1, "cut": [1]}', "[" * 100_000])
def test_a_damaged_description_is_refused(folder: Path, text: str) -> None:
    (folder / DESCRIPTION).write_text(text)
    with pytest.raises(ValueError, match=rf"^\S*{DESCRIPTION}: is damaged, or no description of a network$"):
        ModelFiles.read(folder)


def test_a_newer_format_is_refused(folder: Path) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(ValueError, match="is of format 2, this version of counterflow reads 1"):
        ModelFiles.read(folder)


def test_weights_that_are_none_are_refused(folder: Path) -> None:
    """The checksum is right, as where somebody wrote both files."""
    content = json.loads((folder / DESCRIPTION).read_text())
    (folder / NETWORK).write_bytes(b"no weights")
    content["sha256"][NETWORK] = hashlib.sha256(b"no weights").hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"^\S*{NETWORK}: is no safetensors file: .*$"):
        ModelFiles.read(folder)


def test_a_folder_without_a_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds no finished run: it has no {DESCRIPTION}"):
        ModelFiles.read(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="is a run that has not finished"):
        ModelFiles.read(tmp_path)
