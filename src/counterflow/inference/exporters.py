"""Export of a trained network: safetensors, torch.export's ``.pt2``, ONNX, and torchvision's own classes."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.inference.model_files import ModelDescription
from counterflow.inference.predictor import Predictor
from counterflow.models.torchvision_names import to_torchvision

RTOL, ATOL = 1e-4, 1e-5
"""Largest difference between the scores of a network and of its export."""
_BATCHES = (1, 7)
"""Batch sizes by which an export is checked."""


def export(predictor: Predictor, path: Path, kind: str, described: ModelDescription) -> str:
    """Export ``predictor``, compare the export with it, and write it to ``path``.

    Args:
        predictor: The network, in evaluation mode on the CPU.
        path: The file to write.
        kind: ``safetensors``: parameters and buffers of the network under their names, with the names of the classes
            and the normalisation among the metadata. ``pt2``: a program of ``torch.export`` from inputs as the data
            set has them to scores, for any batch size, with ``class_names.json`` as an extra file. ``onnx``: the same
            for ONNX runtimes, with the names of the classes among the metadata. ``torchvision``: the ``state_dict`` of
            torchvision's own class, of a residual network whose architecture is theirs; it takes normalised images.
        described: The network's description.

    Returns:
        What was checked, in a line.

    Raises:
        ValueError: ``kind`` is unknown or not for this network, a package is missing, or the export computes something
            else.
    """
    if kind not in EXPORTERS:
        raise ValueError(f"format={kind}: allowed are {', '.join(EXPORTERS)}")
    return EXPORTERS[kind](predictor, path, described)


def _safetensors(predictor: Predictor, path: Path, described: ModelDescription) -> str:
    norm = {name: json.dumps(buffer.tolist()) for name, buffer in predictor.normalisation.named_buffers()}
    metadata = {"class_names": json.dumps(predictor.class_names), **norm}
    # A layer may share a tensor with itself, which the format does not allow.
    state = {name: tensor.clone() for name, tensor in predictor.network.state_dict().items()}
    atomic_write(path, save(state, metadata))
    return f"{len(state)} tensors"


def _pt2(predictor: Predictor, path: Path, described: ModelDescription) -> str:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(predictor, (predictor.example(2),), dynamic_shapes={"inputs": {0: batch}})
    written = BytesIO()
    torch.export.save(program, written, extra_files={"class_names.json": json.dumps(predictor.class_names)})
    checked = _compared(predictor, torch.export.load(BytesIO(written.getvalue())).module(), "torch.export")
    atomic_write(path, written.getvalue())
    return checked


def _onnx(predictor: Predictor, path: Path, described: ModelDescription) -> str:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise ValueError(f"format=onnx: needs {error.name}: pip install 'counterflow[onnx]'") from error
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        predictor,
        (predictor.example(2),),
        dynamic_shapes={"inputs": {0: batch}},
        input_names=["inputs"],
        output_names=["scores"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"class_names": json.dumps(predictor.class_names)})
    written = proto.SerializeToString()
    checked = _checked_onnx(predictor, written)
    atomic_write(path, written)
    return checked


def _checked_onnx(predictor: Predictor, written: bytes) -> str:
    try:
        import onnxruntime
    except ImportError:
        return "not checked, as onnxruntime is not installed"
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["scores"], {"inputs": inputs.numpy()})[0])

    return _compared(predictor, run, f"onnxruntime {onnxruntime.__version__}")


def _torchvision(predictor: Predictor, path: Path, described: ModelDescription) -> str:
    network = torchvision_resnet(described)
    state = predictor.network.state_dict()
    stages = described.model["stages"]
    network.load_state_dict({to_torchvision(name, stages): tensor for name, tensor in state.items()})
    network.eval()
    checked = _compared(predictor, lambda inputs: network(predictor.normalisation(inputs)), "torchvision's class")
    written = BytesIO()
    torch.save(network.state_dict(), written)
    atomic_write(path, written.getvalue())
    small = (
        "; its conv1 has a kernel of 3, and its maxpool is an Identity" if described.model["stem"] == "small" else ""
    )
    return f"{checked}{small}"


EXPORTERS: dict[str, Callable[[Predictor, Path, ModelDescription], str]] = {
    "safetensors": _safetensors,
    "pt2": _pt2,
    "onnx": _onnx,
    "torchvision": _torchvision,
}


def torchvision_resnet(described: ModelDescription) -> nn.Module:
    """Torchvision's residual network of this architecture, with random weights.

    Raises:
        ValueError: The architecture is not theirs.
    """
    model, blocks = described.model, len(described.cut)
    if model["name"] not in ("resnet18", "resnet50") or model["width"] != 64 or len(model["stages"]) != 4:
        raise ValueError("format=torchvision: is for model=resnet18 and resnet50 of four stages and model.width=64")
    if described.unused or blocks not in described.exits:
        raise ValueError("format=torchvision: is for networks that predict by their own output layer")
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    kind = Bottleneck if model["name"] == "resnet50" else BasicBlock
    network: nn.Module = ResNet(kind, list(model["stages"]), num_classes=len(described.class_names))
    small = model["stem"] == "small"
    side, stride = (3, model["stride"]) if small else (7, 2)
    network.conv1 = nn.Conv2d(described.input_shape[0], 64, side, stride, padding=side // 2, bias=False)
    if small:
        network.maxpool = nn.Identity()
    return network


@torch.inference_mode()
def _compared(predictor: Predictor, exported: Callable[[Tensor], Any], what: str) -> str:
    """``ValueError`` where ``exported`` does not compute what ``predictor`` does; else what was compared."""
    largest = 0.0
    for size in _BATCHES:
        inputs = predictor.random_inputs(size)
        here, there = predictor(inputs), exported(inputs)
        difference = float((here - there).abs().max())
        if not torch.allclose(there, here, RTOL, ATOL) or not torch.equal(here.argmax(-1), there.argmax(-1)):
            raise ValueError(f"{what} computes other scores: they differ by {difference:.2g} for a batch of {size}")
        largest = max(largest, difference)
    sizes = " and ".join(map(str, _BATCHES))
    return f"scores by {what} differ by at most {largest:.2g}, for batches of {sizes} random inputs"
