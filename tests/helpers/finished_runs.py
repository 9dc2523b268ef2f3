"""Run directories as a run leaves them, made without running anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

MakeRun = Callable[..., Path]


def _config(algorithm: str, blocks: int, seed: int, options: dict[str, Any]) -> Any:
    latent = {"latent": {"family": "gaussian", "convolutions": 0}} if algorithm == "bll" else {}
    config = OmegaConf.create(
        {
            "seed": seed,
            "blocks": blocks,
            "scale": "cpu",
            "schedule": "auto",
            "algorithm": {"name": algorithm, **latent},
            "model": {"name": "mlp", "cut": "flops", "width": 256, "hidden": 4},
            "data": {"name": "digits", "root": "data", "limit": None},
            "optimizer": {"name": "adamw", "lr": 0.001},
            "engine": {"lag": 2, "depth": 2, "threads": "auto", "timeout": 300.0, "backend": "auto"},
            "train": {"epochs": 1, "batch_size": 32},
            "run": {"dir": f"somewhere/{seed}", "experiment": "table1"},
        }
    )
    for key, value in options.items():
        OmegaConf.update(config, key, value)
    return config


def run_maker(folder: Path) -> MakeRun:
    """``make_run(name, algorithm, seed, accuracy, ...)`` writes a finished run and returns its directory.

    ``options`` are overrides of the configuration, ``summary`` of the summary (a value of ``...`` leaves the key out),
    ``rows`` the lines of the metrics beside the one of the test, ``activations`` and ``labels`` what blocks put out.
    """

    def make(
        name: str,
        algorithm: str = "bll",
        seed: int = 1,
        accuracy: float | None = 0.9,
        *,
        blocks: int = 4,
        options: dict[str, Any] | None = None,
        summary: dict[str, Any] | None = None,
        rows: list[dict[str, Any]] | None = None,
        activations: list[np.ndarray] | None = None,
        labels: np.ndarray | None = None,
    ) -> Path:
        path = folder / "runs" / name
        path.mkdir(parents=True)
        config = _config(algorithm, blocks, seed, options or {})
        OmegaConf.save(config, path / "config.yaml")
        content = {
            "algorithm": algorithm,
            "model": config.model.name,
            "data": config.data.name,
            "blocks": blocks,
            "ranks": 1,
            "seed": seed,
            "steps": 60,
            "test_accuracy": accuracy,
            "block_accuracy": [None] * (blocks - 1) + [accuracy],
            "validation_accuracy": None,
            "validation_block_accuracy": None,
            "samples_per_second": 1000.0,
            "wait_fraction": [0.0],
            "seconds": 2.0,
            "fingerprint": f"{seed:064x}",
            "effective_parameters": 1000,
            "affiliated_parameters": 0 if algorithm == "bp" else 200,
            "cut": [1] * (blocks - 1) + [config.model.hidden + 2 - blocks],
            "device": "cpu",
            "torch_version": "2.11.0",
            "git_commit": "c0ffee",
            "experiment": config.run.experiment,
            "scale": config.scale,
            "torchvision_version": "0.26.0",
            "python_version": "3.11.9",
            "hardware": "a processor, 2 cores",
            "flops": None,
            **(summary or {}),
        }
        (path / "summary.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
        test = {"event": "test", "n": 59, "seconds": 1.0, "accuracy": content["block_accuracy"]}
        lines = [*(rows or []), *([test] if accuracy is not None else [])]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if activations is not None:
            blocks_of = {f"block_{k}": block for k, block in enumerate(activations, 1)}
            np.savez(path / "activations.npz", labels=labels, **blocks_of)
        return path

    return make
