"""The public Trainer: a network, a rule and data in; a trained network out."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from counterflow import models
from counterflow.algorithms.bll import BLL
from counterflow.config import (
    AdamW,
    AlgorithmConfig,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimizerConfig,
    OwnDataConfig,
    OwnModelConfig,
    RunConfig,
    SyncConfig,
    TopologyConfig,
    TrainConfig,
    TrainLoopConfig,
)
from counterflow.data import Source, as_dataset, load
from counterflow.data.dataset import Dataset
from counterflow.metrics.callback import Callback
from counterflow.metrics.loggers import check_installed
from counterflow.metrics.provenance import digest
from counterflow.models.custom import check_network
from counterflow.rank_info import RankInfo
from counterflow.trainer.fit import FitResult, ProcessControl, connect_and_fit
from counterflow.trainer.job_builder import build_job, prepare_process, task_of

Network = nn.Sequential | Callable[[], nn.Sequential] | ModelConfig


class Trainer:
    """Trains a network in blocks, each of which learns locally.

    The result is a function of the arguments alone: one process, or any number of them up to ``blocks * replicas``
    under torchrun or `counterflow.spawn`, give the same bits.
    """

    def __init__(
        self,
        model: Network,
        *,
        rule: AlgorithmConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        blocks: int = 4,
        cut: str | Sequence[int] = "flops",
        lag: int | str | None = None,
        replicas: int = 1,
        sync: SyncConfig | None = None,
        inner: str = "pipeline",
        seed: int = 1,
        init: str | Path | None = None,
        freeze: Sequence[int | str] | None = None,
        schedule: str = "auto",
        device: str = "auto",
        engine: EngineConfig | None = None,
    ) -> None:
        """
        Args:
            model: A function that returns the network, called under ``seed``; a built ``nn.Sequential``, which stays
                as it is and must be the same on all ranks; or the options of a network of this package. The entries
                of the sequence are the points between which it may be cut.
            rule: `BLL` (the default), `AL`, `PredSim`, `PerBlock` with a rule of your own, `Backprop` or
                `FeedbackAlignment`.
            optimizer: `AdamW` (the default), `Muon` or `SGD`, one for every block.
            blocks: Number of block pairs, up to the number of layers.
            cut: ``flops``, ``parameters``, ``profile``, or the number of layers of every block.
            lag: How many batches earlier a target leaves, per hop; ``exact`` is the locked algorithm on one process.
                Under ``naive`` and ``pipedream``, batches between a batch and its gradient, per hop. None is that of
                ``engine``.
            replicas: Copies of the pipeline, each of which trains on its share of every batch (local rules only).
            sync: How the copies of a block learn together; by default by the mean of their gradients.
            inner: ``pipeline`` or ``replicas``: which pieces are neighbours on the ranks. No bit depends on it.
            seed: Seed of weights, data order, augmentation and dropout.
            init: File of the weights that training starts with, ``.safetensors``, ``.pt`` or ``.pth``. An output layer
                of another shape, as for other classes, starts at random.
            freeze: Layers that do not learn, by index or by name. They compute as in evaluation: batch norm with the
                statistics that it has, and no dropout. Like ``init``, None is what options of a network say.
            schedule: ``auto``; for end-to-end references also ``gpipe``, ``1f1b``, ``interleaved1f1b``, ``zbv``,
                ``naive`` and ``pipedream``.
            device: ``auto``, ``cpu`` or ``cuda``.
            engine: All other options of the engine.

        Raises:
            ValueError: An option is out of range; one line that names it and what is allowed.
        """
        engine = engine or EngineConfig()
        self.engine = engine if lag is None else replace(engine, lag=lag)
        self.model = model
        self.rule = rule if rule is not None else BLL()
        self.optimizer = optimizer if optimizer is not None else AdamW()
        self.blocks = blocks
        self.replicas = replicas
        self.sync = sync or SyncConfig()
        self.topology = TopologyConfig(inner=inner)
        self.cut: Any = cut if isinstance(cut, str) else list(cut)
        self.init = init
        self.freeze = freeze
        self.seed = seed
        self.schedule = schedule
        self.device = device

    def fit(
        self,
        train: Source | DataConfig,
        test: Source | None = None,
        *,
        epochs: int = 1,
        steps: int | None = None,
        batch_size: int = 32,
        microbatches: int = 4,
        accumulate: int = 1,
        validation: float = 0.0,
        limit: int | None = None,
        workers: int = 0,
        augment: bool = False,
        padding: int = 2,
        flip: bool = True,
        pad: str = "zeros",
        alternate: bool = False,
        test_views: int = 1,
        evaluate_every: int = 0,
        patience: int = 0,
        evaluate_test: bool = True,
        log_every: int = 10,
        run_dir: str | Path | None = None,
        resume: str = "auto",
        checkpoint: CheckpointConfig | None = None,
        trace: bool = False,
        activations: int = 0,
        experiment: str | None = None,
        scale: str = "full",
        loggers: Sequence[str] = ("tensorboard",),
        callbacks: Sequence[Callback] = (),
        control: ProcessControl | None = None,
    ) -> FitResult:
        """Train on the processes that the launcher's environment names, all of which call this alike.

        For its duration and beyond, the process computes with ``engine.threads`` intra-op threads and keeps the memory
        that it frees (mallopt), because bits and speed depend on them. On several ranks of one node it sets
        GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to loopback, unless they are set. Signals are left alone.

        Args:
            train: A `Split`, a pair of tensors (inputs, labels), a map-style torch ``Dataset``, or a `DataConfig` that
                names a data set with its own options.
            test: The same for the test data; None where there is none, or where ``train`` is a `DataConfig`.
            epochs: Passes over the training data.
            steps: Stop after so many batches.
            batch_size: Samples of a batch.
            microbatches: Parts of a batch under a pipeline schedule of torch.
            accumulate: Parts of a batch under a local rule, which travel and are learnt one after the other.
            validation: Share of the training data that is held out.
            limit: Train on so many of the remaining samples.
            workers: Processes that read the samples of Datasets when batches need them, so that transforms draw anew in
                every epoch; 0 reads them into memory, once. `data.workers` of a `DataConfig`.
            augment: Random crops after ``padding`` pixels of ``pad`` and, with ``flip``, horizontal flips, of images.
            padding: See ``augment``.
            flip: See ``augment``.
            pad: ``zeros``, or ``reflect`` for the image's own pixels.
            alternate: Flip every image in every second epoch.
            test_views: Views of an image that the last evaluation averages for ``tta_accuracy``: 1, 2 or 6.
            evaluate_every: Evaluate held-out data after every so many batches; 0 is only at the end.
            patience: End early after so many evaluations of held-out data in a row without progress: a higher
                accuracy, or of text fewer bits per byte; 0 is never.
            evaluate_test: Evaluate the test data after the last batch.
            log_every: Report metrics after every so many batches.
            run_dir: Folder for metrics, checkpoints and the summary. Without it nothing is written.
            resume: ``auto``, ``never``, or the folder of a checkpoint that a new run goes on from.
            checkpoint: When checkpoints are written; needs ``run_dir``.
            trace: Record what every rank does when; needs ``run_dir``.
            activations: Save the activations of every block for so many test samples; needs ``run_dir``.
            experiment: Name of the experiment, for reports.
            scale: Size of the experiment, for reports: ``smoke``, ``cpu`` or ``full``.
            loggers: Where the metrics of a run with ``run_dir`` go, too: ``tensorboard``, ``wandb``, or nowhere.
            callbacks: Reactions of rank 0.
            control: How signals and restarts reach the run; used by the command line.

        Returns:
            The result, on every rank; rank 0 has the weights.

        Raises:
            ValueError: Something does not fit, before any process group exists; one line.
            BlockError: A block failed; the text names rank, block and batch.
            CallbackError: A callback failed; the text names it.
            ChannelError: A rank was lost, or a wait ran out; the text names rank, edge and batch.
            FinishedError: ``run_dir`` holds this run, and it has finished.
            ReaderError: A process of ``workers`` ended, or hangs; the text names the sample.
            PreemptedError: ``control`` passed on a signal, and the run ended after a checkpoint.
        """
        data = (
            train
            if isinstance(train, DataConfig)
            else OwnDataConfig(
                validation=validation,
                limit=limit,
                workers=workers,
                augment=augment,
                padding=padding,
                pad=pad,
                flip=flip,
                alternate=alternate,
                test_views=test_views,
            )
        )
        _check_directory(run_dir, checkpoint, trace, activations)
        config = TrainConfig(
            seed=self.seed,
            blocks=self.blocks,
            replicas=self.replicas,
            scale=scale,
            device=self.device,
            schedule=self.schedule,
            trace=trace,
            algorithm=self.rule,
            model=self._model_config(),
            data=data,
            optimizer=self.optimizer,
            engine=self.engine,
            topology=self.topology,
            sync=self.sync,
            train=TrainLoopConfig(
                epochs=epochs,
                batch_size=batch_size,
                microbatches=microbatches,
                accumulate=accumulate,
                steps=steps,
                evaluate_every=evaluate_every,
                patience=patience,
                test=evaluate_test,
                log_every=log_every,
            ),
            checkpoint=checkpoint or CheckpointConfig(),
            run=RunConfig(
                dir=None if run_dir is None else str(run_dir),
                resume=resume,
                experiment=experiment,
                activations=activations,
                loggers=list(loggers),
            ),
        )
        check_installed(config.run.loggers)
        info = RankInfo.from_env()
        prepare_process(config)
        if isinstance(train, DataConfig):
            dataset = load(train)
        else:
            seed = self.seed if workers else None
            dataset = as_dataset(train, test, validation=validation, limit=limit, seed=seed)
        job = build_job(config, self._network(dataset), dataset, info)
        return connect_and_fit(job, config, info, callbacks, control or ProcessControl())

    def _model_config(self) -> ModelConfig:
        given: dict[str, Any] = {"cut": self.cut}
        if self.init is not None:
            given["init"] = str(self.init)
        if self.freeze is not None:
            given["freeze"] = list(self.freeze)
        if isinstance(self.model, ModelConfig):
            return replace(self.model, **given)
        if isinstance(self.model, nn.Module):
            return OwnModelConfig(target=type(self.model).__name__, digest=digest(self.model).hex(), **given)
        return OwnModelConfig(target=_name_of(self.model), **given)

    def _network(self, dataset: Dataset) -> nn.Sequential:
        if isinstance(self.model, ModelConfig):
            task = task_of(dataset)
            return models.build(self.model, task.input_shape, task.classes, self.seed, layers=())
        if isinstance(self.model, nn.Module):
            return check_network(copy.deepcopy(self.model), "model")
        return check_network(models.build_seeded(self.model, self.seed), _name_of(self.model))


def _name_of(factory: Callable[[], nn.Sequential]) -> str:
    name = getattr(factory, "__qualname__", type(factory).__name__)
    return f"{getattr(factory, '__module__', '')}.{name}"


def _check_directory(run_dir: object, checkpoint: CheckpointConfig | None, trace: bool, activations: int) -> None:
    """``ValueError`` where something is to be written, and there is no folder for it."""
    wanted: dict[str, Any] = {"trace": trace, "activations": activations}
    if checkpoint is not None:
        wanted |= {"checkpoint.every": checkpoint.every, "checkpoint.best": checkpoint.best}
    for key, value in wanted.items():
        if value and run_dir is None:
            raise ValueError(f"{key}={value}: needs run_dir, the folder that takes it")
