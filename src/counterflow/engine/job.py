"""What is to be trained, checked as far as one process can check it alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterflow import models
from counterflow.algorithms import ALGORITHMS, END_TO_END, Task
from counterflow.config import PIPELINES, TrainConfig
from counterflow.data import load
from counterflow.data.batch_loader import BatchLoader
from counterflow.data.sampler import EpochSampler
from counterflow.engine.memory import disable_malloc_trim
from counterflow.engine.numerics import Numerics
from counterflow.engine.threads import intra_op_threads
from counterflow.models.partition import layer_counts, output_shapes
from counterflow.schedule import RunPlan
from counterflow.topology import Topology


@dataclass(frozen=True)
class Job:
    """One run: the configuration and everything that follows from it without another process."""

    config: TrainConfig
    topology: Topology
    schedule: str
    batches: BatchLoader
    plan: RunPlan
    network: nn.Sequential
    task: Task
    counts: list[int] | None
    """Layers of every block; None if they are to be measured."""
    device: torch.device
    numerics: Numerics
    backend: str

    @property
    def example(self) -> Tensor:
        """The first batch of inputs, on the CPU."""
        return self.batches.inputs(0).cpu()


def build_job(config: TrainConfig, ranks: int, local_rank: int = 0, local_ranks: int = 1) -> Job:
    """Load the data and build the network. Raises ``ValueError`` naming the key for whatever does not fit.

    Sets the process's number of threads first: what is computed from here on is a function of it. And the process keeps
    the memory that it frees.
    """
    topology = Topology(config.blocks, ranks)
    schedule = _schedule(config, ranks)
    if config.engine.recovery == "rank" and schedule in PIPELINES:
        raise ValueError(f"engine.recovery=rank: allowed for schedule={schedule} is all, as its ranks wait in step")
    exact = config.engine.lag == "exact"
    if exact and ranks > 1 and schedule == "free":
        raise ValueError(f"engine.lag=exact: the locked algorithm runs on one process, not on ranks={ranks}")
    torch.set_num_threads(intra_op_threads(config.engine.threads, config.blocks))
    disable_malloc_trim()
    device, backend = _device(config, local_rank, local_ranks)
    if schedule in PIPELINES and ranks > 1 and device.type == "cuda" and backend == "gloo":
        raise ValueError(
            f"schedule={schedule}: torch's schedules move CUDA tensors over nccl only, a device for each rank"
        )
    dataset = load(config.data)
    order = EpochSampler(len(dataset.train), config.train.batch_size, config.seed)
    batches = BatchLoader(dataset, config.data, order, device)
    total = config.train.epochs * order.steps_per_epoch
    plan = RunPlan(
        batches=min(total, config.train.steps or total),
        lag=0 if exact else config.engine.lag,
        evaluate_every=config.train.evaluate_every,
        test_batches=len(batches.test) if config.train.test else 0,
        validation_batches=len(batches.validation),
        gradients_from=config.blocks if schedule == "naive" else 0,
        checkpoint_every=config.checkpoint.every,
        predicts_down=schedule == "free" and ALGORITHMS[config.algorithm.name].predicts_down,
    )
    train = dataset.train
    task = Task(tuple(train.inputs.shape[1:]), dataset.classes, tuple(train.labels.shape[1:]))
    network = models.build(config.model, task.input_shape, task.classes, config.seed)
    example = batches.inputs(0).cpu()
    found, wanted = output_shapes([network], example)[0], (*task.label_shape, task.classes)
    if found != wanted:
        raise ValueError(
            f"model={config.model.name}: its output has shape {list(found)}, the labels of data={config.data.name} "
            f"need {list(wanted)}"
        )
    cut = config.model.cut
    counts = None if cut == "profile" else layer_counts(network, config.blocks, cut, example)
    return Job(
        config,
        topology,
        schedule,
        batches,
        plan,
        network,
        task,
        counts,
        device,
        Numerics.of(config.engine, device),
        backend,
    )


def _schedule(config: TrainConfig, ranks: int) -> str:
    """The schedule that ``auto`` means, or the one that is named if it makes sense."""
    name, wanted, microbatches = config.algorithm.name, config.schedule, config.train.microbatches
    if name not in END_TO_END:
        if wanted not in ("auto", "free"):
            raise ValueError(f"schedule={wanted}: algorithm={name} learns locally, allowed are auto, free")
        return "free"
    if wanted == "naive" and name != "bp":
        raise ValueError(f"schedule=naive: is for algorithm=bp, algorithm={name} runs with {', '.join(PIPELINES)}")
    if wanted == "free":
        raise ValueError(
            f"schedule=free: algorithm={name} has a backward lock, allowed are auto, naive, {', '.join(PIPELINES)}"
        )
    schedule = "1f1b" if wanted == "auto" else wanted
    if ranks == 1 or schedule == "naive":
        return schedule
    if config.train.batch_size % microbatches:
        raise ValueError(f"train.microbatches={microbatches}: must divide train.batch_size={config.train.batch_size}")
    if schedule == "1f1b" and microbatches < ranks:
        raise ValueError(
            f"train.microbatches={microbatches}: schedule=1f1b needs at least one for each of ranks={ranks}"
        )
    if schedule == "interleaved1f1b" and (config.blocks % ranks or config.blocks == ranks or microbatches % ranks):
        raise ValueError(
            f"schedule=interleaved1f1b: blocks={config.blocks} must be a multiple of ranks={ranks}, and more; "
            f"train.microbatches={microbatches} must be a multiple of ranks"
        )
    if schedule == "zbv" and (config.blocks != 2 * ranks or microbatches < 2 * ranks):
        raise ValueError(
            f"schedule=zbv: blocks={config.blocks} must be {2 * ranks}, two for each rank; "
            f"train.microbatches={microbatches} must be at least {2 * ranks}"
        )
    return schedule


def _device(config: TrainConfig, local_rank: int, local_ranks: int) -> tuple[torch.device, str]:
    """Where this process computes, and what carries its messages."""
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ValueError("device=cuda: no CUDA device is available, allowed here are auto, cpu")
    backend = config.engine.backend
    if config.engine.recovery == "rank":
        if backend == "nccl":
            raise ValueError("engine.backend=nccl: allowed for engine.recovery=rank are auto, gloo")
        backend = "gloo"
    if config.device == "cpu" or not found:
        if backend == "nccl":
            raise ValueError("engine.backend=nccl: needs device=cuda, allowed for the CPU are auto, gloo")
        return torch.device("cpu"), "gloo"
    devices = torch.cuda.device_count()
    if backend == "nccl" and local_ranks > devices:
        raise ValueError(
            f"engine.backend=nccl: {local_ranks} ranks on {devices} devices, it needs a device for each rank"
        )
    if backend == "auto":
        backend = "nccl" if local_ranks <= devices else "gloo"
    return torch.device("cuda", local_rank % devices), backend
