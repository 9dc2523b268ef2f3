"""The example of BLL in one file gives the engine's parameters, bit for bit."""

import importlib.util
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterflow.config import AdamW, EngineConfig
from counterflow.trainer.trainer import Network, Trainer

PATH = Path(__file__).parents[2] / "examples" / "figure2.py"
Samples = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def figure2() -> Any:
    spec = importlib.util.spec_from_file_location("figure2", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figure2"] = module
    spec.loader.exec_module(module)
    return module


def dropping() -> nn.Sequential:
    """Layers of several widths, with dropout, and a bottom layer without activation."""
    return nn.Sequential(
        nn.Linear(64, 24),
        nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 40), nn.Tanh()),
        nn.Linear(40, 10),
    )


def samples(size: int) -> Samples:
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(10, (size,), generator=generator)
    return torch.randn(size, 64, generator=generator) + labels[:, None], labels


def engine_summary(
    network: Network,
    train: Samples,
    test: Samples,
    *,
    cut: Sequence[int] | str = "flops",
    blocks: int,
    lag: int,
    epochs: int,
    batch_size: int,
    warmup: int,
    seed: int,
) -> Mapping[str, Any]:
    """The engine's summary of the same training on one process and one thread."""
    trainer = Trainer(
        network,
        optimizer=AdamW(lr=0.01, warmup=warmup),
        blocks=blocks,
        cut=cut,
        lag=lag,
        seed=seed,
        device="cpu",
        engine=EngineConfig(threads=1),
    )
    return trainer.fit(train, test, epochs=epochs, batch_size=batch_size).summary


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize(
    ("network", "cut", "size", "epochs"),
    [
        ("network", [1, 1, 1, 2], 330, 2),
        ("network", [1, 1, 1, 2], 96, 1),  # 3 batches: with lag 2 fewer than the prologue of block 3
        ("network", [5], 330, 1),
        ("dropping", [1, 1, 1], 330, 2),
    ],
)
def test_same_parameters_as_the_engine(
    figure2: Any,
    lag: int,
    network: str,
    cut: list[int],
    size: int,
    epochs: int,
) -> None:
    x, y = samples(size)
    factory = figure2.network if network == "network" else dropping
    figure2.seed_stream(3, "model")
    blocks = figure2.cut(factory(), cut, x, lr=0.01, seed=3)
    figure2.train(blocks, x, y, lag=lag, epochs=epochs, size=32, warmup=3, seed=3)
    summary = engine_summary(
        factory,
        (x, y),
        (x, y),
        cut=cut,
        blocks=len(cut),
        lag=lag,
        epochs=epochs,
        batch_size=32,
        warmup=3,
        seed=3,
    )
    assert summary["steps"] == size // 32 * epochs
    assert figure2.fingerprint(blocks) == summary["fingerprint"]


def test_the_script_prints_what_the_engine_finds(figure2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(PATH), run_name="__main__")
    *accuracies, fingerprint = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    x, y = script["x"], script["y"]
    summary = engine_summary(
        figure2.network,
        (x[:2000], y[:2000]),
        (x[2000:], y[2000:]),
        blocks=4,
        lag=2,
        epochs=5,
        batch_size=50,
        warmup=10,
        seed=1,
    )
    assert summary["cut"] == [1, 1, 1, 2]
    assert fingerprint == summary["fingerprint"]
    assert accuracies == [f"{accuracy:.3f}" for accuracy in summary["block_accuracy"]]
    assert min(summary["block_accuracy"]) > 0.9


def test_the_example_is_short_and_needs_torch_alone() -> None:
    lines = PATH.read_text().splitlines()
    assert len(lines) < 150
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported - sys.stdlib_module_names == {"torch"}
