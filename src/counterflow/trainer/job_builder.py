"""From a configuration to a `Job`, checked as far as one process can check it alone."""

import logging
from collections.abc import Collection
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

from counterflow import models
from counterflow.algorithms import LocalAlgorithm, Task
from counterflow.checkpoint import CheckpointDirectory
from counterflow.config import ASYNCHRONOUS, PIPELINES, RunConfig, TrainConfig
from counterflow.data import load
from counterflow.data.batch_loader import BatchLoader, EpochSampler
from counterflow.data.dataset import Dataset
from counterflow.engine.job import Job
from counterflow.engine.runtime import Runtime, disable_malloc_trim, has_bf16_units, intra_op_threads
from counterflow.models.freezing import freeze
from counterflow.models.initial_weights import load_initial_weights
from counterflow.models.partition import block_sizes, is_outline, profile_layers
from counterflow.rank_info import RankInfo
from counterflow.schedule import RunPlan
from counterflow.schedule.pipeline_schedules import check_microbatches
from counterflow.topology import Topology
from counterflow.trainer.rank0 import CHECKPOINTS

_log = logging.getLogger(__name__)


def prepare_process(config: TrainConfig) -> None:
    """Set the number of intra-op threads, of which all bits are a function, and keep the memory that is freed."""
    torch.set_num_threads(intra_op_threads(config.engine.threads, config.blocks * config.replicas))
    disable_malloc_trim()


def build_job(config: TrainConfig, network: nn.Sequential, dataset: Dataset, info: RankInfo) -> Job:
    """The run of ``config`` on ``network`` and ``dataset`` as the process ``info`` sees it.

    The network gets the weights of ``model.init``, and its layers ``model.freeze`` are frozen. It may be an outline on
    the meta device, of which `materialized` makes what a process needs.

    Raises:
        ValueError: Something does not fit; one line that names the key, the value and what is allowed.
    """
    topology = Topology(config.blocks, info.size, config.replicas, config.topology.inner)
    schedule = _schedule(config, info.size)
    device, backend = _device(config, schedule, info)
    order = EpochSampler(len(dataset.train), config.train.batch_size, config.seed)
    batches = BatchLoader(dataset, config.data, order, device, config.train.accumulate, replicas=config.replicas)
    total = config.train.epochs * order.steps_per_epoch
    plan = RunPlan(
        batches=min(total, config.train.steps or total),
        lag=0 if config.engine.lag == "exact" else config.engine.lag,
        evaluate_every=config.train.evaluate_every,
        test_batches=len(batches.test) if config.train.test else 0,
        validation_batches=len(batches.validation),
        gradients_from=config.blocks if schedule in ASYNCHRONOUS else 0,
        checkpoint_every=config.checkpoint.every,
        views=config.data.test_views,
        parts=config.train.accumulate,
        replicas=config.replicas,
        sync_every=config.sync.every,
        sync_delay=config.sync.delay,
        predicts_down=schedule == "free" and config.algorithm.predicts_down,
    )
    pretrained = config.model.init is not None
    resumes = pretrained and _goes_on(config.run, plan.batches)
    if pretrained and not resumes:
        kept = load_initial_weights(network, config.model)
        if kept and info.is_main:
            _log.warning(f"model.init={config.model.init}: {' and '.join(kept)} do not fit it, and start at random")
    frozen = freeze(network, config.model.freeze)
    task = task_of(dataset)
    layers = profile_layers(network, batches.example)
    found, wanted = layers[-1].shape, (*task.label_shape, task.classes)
    if found != wanted:
        raise ValueError(
            f"model={config.model.name}: its output has shape {list(found)}, the labels of data={config.data.name} "
            f"need {list(wanted)}"
        )
    cut, engine = config.model.cut, config.engine
    bf16 = engine.precision == "bf16" or (engine.precision == "auto" and has_bf16_units(device))
    job = Job(
        topology=topology,
        plan=plan,
        batches=batches,
        task=task,
        network=network,
        layers=layers,
        algorithm=config.algorithm,
        optimizer=config.optimizer,
        seed=config.seed,
        runtime=Runtime(
            device,
            bf16,
            engine.channels_last,
            engine.compile,
            engine.recompute,
            engine.wire,
        ),
        schedule=schedule,
        cut=None if cut == "profile" else tuple(block_sizes(layers, config.blocks, cut)),
        backend=backend,
        depth=engine.depth,
        target_depth=engine.target_depth,
        microbatches=config.train.microbatches,
        log_every=config.train.log_every,
        activations=config.run.activations,
        pretrained=pretrained,
        resumes=resumes,
        frozen=frozen,
        sync=config.sync,
    )
    if isinstance(config.algorithm, LocalAlgorithm) and job.cut is not None:
        config.algorithm.rule_set(job.rule_context)  # a wrong option of a rule is refused here, not by a run
    return job


def materialized(job: Job, config: TrainConfig, blocks: Collection[int] | None = None, loads: bool = True) -> Job:
    """``job`` with memory and values for the layers of ``blocks``, or of all; itself if its network is no outline.

    Args:
        job: Made by `build_job`; its cut is settled unless ``blocks`` is None.
        config: The same configuration.
        blocks: Blocks of this process.
        loads: The weights of ``model.init`` are loaded, if it is set.
    """
    if not is_outline(job.network):
        return job
    layers: Collection[int] | None = None
    if blocks is not None:
        assert job.cut is not None
        ends = [0, *accumulate(job.cut)]
        layers = {layer for block in blocks for layer in range(ends[block - 1], ends[block])}
    network = models.build(config.model, job.task.input_shape, job.task.classes, config.seed, layers)
    if job.pretrained and loads:
        load_initial_weights(network, config.model)
    freeze(network, config.model.freeze)
    return replace(job, network=network)


def load_job(config: TrainConfig, info: RankInfo = RankInfo()) -> Job:  # noqa: B008  # immutable
    """`build_job` for a configuration that names its network and its data. Prepares the process, too."""
    prepare_process(config)
    dataset = load(config.data)
    task = task_of(dataset)
    return build_job(config, models.build(config.model, task.input_shape, task.classes, config.seed), dataset, info)


def _goes_on(run: RunConfig, batches: int) -> bool:
    """The run of ``batches`` batches goes on from a checkpoint, unless all are damaged. The same on all ranks."""
    if run.resume not in ("auto", "never"):
        return True
    return run.dir is not None and CheckpointDirectory(Path(run.dir) / CHECKPOINTS).has_complete(batches)


def task_of(dataset: Dataset) -> Task:
    train = dataset.train
    return Task(tuple(train.inputs.shape[1:]), dataset.classes, tuple(train.labels.shape[1:]))


def _schedule(config: TrainConfig, ranks: int) -> str:
    """The schedule that ``auto`` means, or the one that is named if it makes sense."""
    name, wanted = config.algorithm.name, config.schedule
    if isinstance(config.algorithm, LocalAlgorithm):
        if wanted not in ("auto", "free"):
            raise ValueError(f"schedule={wanted}: algorithm={name} learns locally, allowed are auto, free")
        if config.engine.lag == "exact" and ranks > 1:
            raise ValueError(f"engine.lag=exact: the locked algorithm runs on one process, not on ranks={ranks}")
        return "free"
    if config.replicas > 1:
        raise ValueError(f"replicas={config.replicas}: allowed for algorithm={name} is 1, replicas are of local rules")
    if config.train.accumulate > 1:
        raise ValueError(
            f"train.accumulate={config.train.accumulate}: allowed for algorithm={name} is 1; a batch of its "
            "pipeline schedules has train.microbatches parts"
        )
    if wanted in ASYNCHRONOUS and name != "bp":
        raise ValueError(f"schedule={wanted}: is for algorithm=bp, algorithm={name} runs with {', '.join(PIPELINES)}")
    if wanted == "free":
        raise ValueError(
            f"schedule=free: algorithm={name} has a backward lock, allowed are auto, "
            f"{', '.join((*ASYNCHRONOUS, *PIPELINES))}"
        )
    schedule = "1f1b" if wanted == "auto" else wanted
    if schedule in PIPELINES and config.engine.recovery == "rank":
        raise ValueError(f"engine.recovery=rank: allowed for schedule={schedule} is all, as its ranks wait in step")
    if schedule not in ASYNCHRONOUS:
        check_microbatches(schedule, ranks, config.blocks, config.train.microbatches, config.train.batch_size)
    return schedule


def _device(config: TrainConfig, schedule: str, info: RankInfo) -> tuple[torch.device, str]:
    """The device of this process, and the backend that carries its messages."""
    found, backend, local_ranks = torch.cuda.is_available(), config.engine.backend, info.local_size
    if config.device == "cuda" and not found:
        raise ValueError("device=cuda: no CUDA device is available, allowed here are auto, cpu")
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
    if schedule in PIPELINES and info.size > 1 and backend == "gloo":
        raise ValueError(
            f"schedule={schedule}: torch's schedules move CUDA tensors over nccl only, a device for each rank"
        )
    return torch.device("cuda", info.local_rank % devices), backend
