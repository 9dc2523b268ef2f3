"""Results of a finished run: its summary, and the description of its network."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from counterflow.algorithms import EndToEnd
from counterflow.config import TrainConfig
from counterflow.engine.cost import Flops
from counterflow.engine.job import Job
from counterflow.engine.message_sizes import MessageBytes
from counterflow.engine.run_context import RankResult
from counterflow.inference.model_files import ModelDescription
from counterflow.metrics import provenance
from counterflow.metrics.block_metrics import StepMetrics
from counterflow.metrics.provenance import fingerprint
from counterflow.trainer.rank0 import ResumePoint

_OF_TRAINING = ("init", "freeze")
"""Options of a network that say how it was trained, not what it is."""


def summarize(
    job: Job,
    config: TrainConfig,
    begin: ResumePoint,
    results: Sequence[RankResult],
    evaluations: Mapping[str, StepMetrics],
    bytes_per_batch: MessageBytes,
) -> dict[str, Any]:
    text = job.batches.dataset.tokens_per_byte is not None
    metrics = {
        (split, name): row.column(name)
        for split, row in evaluations.items()
        for name in (
            "accuracy",
            *(["sequence_accuracy"] if job.task.label_shape and not text else []),
            *(["perplexity", "bits_per_byte"] if text else []),
            *(["tta_accuracy"] if job.plan.views > 1 else []),
        )
    }
    by_position = {split: row.lists("bits_by_position") for split, row in evaluations.items()} if text else {}
    digests = {piece: value for result in results for piece, value in result.digests.items() if piece.replica == 0}
    flops = sum((result.flops for result in results), Flops(0, 0, 0))
    return {
        "algorithm": config.algorithm.name,
        "model": config.model.name,
        "data": config.data.name,
        "blocks": config.blocks,
        "replicas": config.replicas,
        "ranks": job.topology.ranks,
        "seed": config.seed,
        "steps": results[0].last + 1,
        "test_accuracy": _top(metrics.get(("test", "accuracy"))),
        "block_accuracy": metrics.get(("test", "accuracy")),
        "validation_accuracy": _top(metrics.get(("validation", "accuracy"))),
        "validation_block_accuracy": metrics.get(("validation", "accuracy")),
        "test_tta_accuracy": _top(metrics.get(("test", "tta_accuracy"))),
        "block_tta_accuracy": metrics.get(("test", "tta_accuracy")),
        "validation_tta_accuracy": _top(metrics.get(("validation", "tta_accuracy"))),
        "test_sequence_accuracy": _top(metrics.get(("test", "sequence_accuracy"))),
        "block_sequence_accuracy": metrics.get(("test", "sequence_accuracy")),
        "bits_per_byte": _top(metrics.get(("test", "bits_per_byte"))),
        "block_bits_per_byte": metrics.get(("test", "bits_per_byte")),
        "perplexity": _top(metrics.get(("test", "perplexity"))),
        "validation_bits_per_byte": _top(metrics.get(("validation", "bits_per_byte"))),
        "validation_block_bits_per_byte": metrics.get(("validation", "bits_per_byte")),
        "block_bits_by_position": by_position.get("test"),
        "validation_block_bits_by_position": by_position.get("validation"),
        "best_validation_accuracy": None,
        "best_validation_bits_per_byte": None,
        "best_steps": None,
        "samples_per_second": (rate := min(r.batches * job.batch_size / r.seconds for r in results)),
        "tokens_per_second": rate * job.task.input_shape[0] if text else None,
        "wait_fraction": [r.receive_wait / r.seconds for r in results],
        "send_wait_fraction": [r.send_wait / r.seconds for r in results],
        "bytes_per_batch": bytes_per_batch,
        "resumed_after": begin.batches or None,
        "seconds": max((row.seconds for row in evaluations.values()), default=None),
        "fingerprint": fingerprint(digests[piece] for piece in sorted(digests)),
        "effective_parameters": sum(r.effective_parameters for r in results),
        "affiliated_parameters": sum(r.affiliated_parameters for r in results),
        "exits": _exits(job, results, metrics),
        "flops": {"network": flops.forward, "training": flops.backprop, "extra": flops.learning - flops.backprop},
        "schedule": job.schedule,
        "lag": config.engine.lag,
        "cut": list(job.cut or ()),
        "threads": torch.get_num_threads(),
        "device": job.device.type,
        "precision": job.runtime.precision,
        "backend": job.backend,
        "experiment": config.run.experiment,
        "scale": config.scale,
        "config_hash": provenance.config_hash(config),
        "group_hash": provenance.group_hash(config),
        "hardware": provenance.hardware(job.device),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "torchvision_version": provenance.torchvision_version(),
        "git_commit": provenance.git_commit(),
    }


def _exits(
    job: Job, results: Sequence[RankResult], metrics: Mapping[tuple[str, str], list[float | None]]
) -> list[dict[str, Any]]:
    """Accuracy and FLOPs per sample of a prediction that ends at each block that has one, bottom to top."""
    flops = {block: exit_flops for result in results for block, exit_flops in result.exits.items()}
    exits: list[dict[str, Any]] = []
    below = 0.0
    for block in range(1, job.topology.blocks + 1):
        below += flops[block].block + flops[block].decoder
        readout = flops[block].readout
        if readout is None:
            continue
        accuracies = {
            f"{split}_accuracy": values[block - 1]
            for split in ("test", "validation")
            if (values := metrics.get((split, "accuracy"))) is not None
        }
        exits.append({"block": block, "flops": below + readout, **accuracies})
    return exits


def describe(
    job: Job, config: TrainConfig, summary: Mapping[str, Any], state: Mapping[str, Tensor]
) -> ModelDescription:
    dataset = job.batches.dataset
    moments = [moment.tolist() for moment in job.batches.moments] if dataset.train.images else [None, None]
    names = original_state(job, job.network.state_dict())
    return ModelDescription(
        model={key: value for key, value in asdict(config.model).items() if key not in _OF_TRAINING},
        algorithm=asdict(config.algorithm),
        cut=list(job.cut or ()),
        input_shape=job.task.input_shape,
        input_type=str(dataset.train.inputs.dtype).removeprefix("torch."),
        mean=moments[0],
        std=moments[1],
        label_shape=job.task.label_shape,
        class_names=dataset.class_names,
        parameters=list(state),
        unused=[name for name in names if name not in state],
        exits=[one["block"] for one in summary["exits"]],
        predicts_down=job.plan.predicts_down,
        fingerprint=summary["fingerprint"],
        tokens_per_byte=(dataset.tokens_per_byte or {}).get("test"),
    )


def original_state(job: Job, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` of the network of ``job`` under the names that it had before the algorithm changed it."""
    return job.algorithm.original_state(state) if isinstance(job.algorithm, EndToEnd) else dict(state)


def _top(blocks: Sequence[float | None] | None) -> float | None:
    return None if blocks is None else blocks[-1]
