"""The configuration schema. Every option is checked here, before any process group exists.

The YAML files under ``conf/`` only choose values; names, types and limits are these dataclasses. Errors are
``ValueError`` of one line: the key, the value, and what is allowed.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from counterflow.config.algorithm import AlgorithmConfig
from counterflow.config.model import ModelConfig
from counterflow.config.validators import at_least, fraction, one_of, rate, size

_DATA_NAMES = ("digits", "fashion_mnist", "mnist", "cifar10", "cifar100", "reverse", "image_folder")


@dataclass(kw_only=True)
class DataConfig:
    name: str = MISSING
    root: str = "data"
    """Folder that holds the data set."""
    download: bool = False
    validation: float = 0.0
    """Share of the training data that is held out of training, the same samples in every run: evaluations before the
    end are on these, so that test data is looked at once."""
    limit: int | None = None
    """Train on so many of the remaining samples, the same ones in every run; all if not set."""
    augment: bool = False
    """Random crops of a padded image, and horizontal flips, deterministic in (seed, epoch, index)."""
    padding: int = 2
    """Pixels of zero padding before a crop (``augment=true`` only)."""
    flip: bool = True
    """Horizontal flips (``augment=true`` only)."""

    def __post_init__(self) -> None:
        self._check_name()
        fraction("data.validation", self.validation)
        if self.limit is not None:
            at_least("data.limit", self.limit, 1)
        size("data.padding", self.padding, 0)

    def _check_name(self) -> None:
        one_of("data.name", self.name, _DATA_NAMES)


DATA = {
    config.name: config
    for config in (
        DataConfig(name="digits"),
        DataConfig(name="mnist", flip=False),  # digits are not mirrored
        DataConfig(name="fashion_mnist"),
        DataConfig(name="cifar10", padding=4),
        DataConfig(name="cifar100", padding=4),
        DataConfig(name="reverse"),
        DataConfig(name="image_folder"),
    )
}
"""The data sets that have a loader, with their defaults."""


@dataclass(kw_only=True)
class OwnDataConfig(DataConfig):
    """The record of data that a script passed to a Trainer."""

    name: str = "custom"

    def _check_name(self) -> None:
        one_of("data.name", self.name, ("custom",))


@dataclass(kw_only=True)
class OptimizerConfig:
    name: str = MISSING
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    """Learning rate as a function of the batch index: ``constant``, ``cosine`` or ``linear`` (both fall to 0)."""
    warmup: int = 0
    """Batches of linear warm-up."""

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, (type(self).name,))
        rate("optimizer.lr", self.lr)
        rate("optimizer.weight_decay", self.weight_decay)
        one_of("optimizer.schedule", self.schedule, ("constant", "cosine", "linear"))
        at_least("optimizer.warmup", self.warmup, 0)


@dataclass(kw_only=True)
class SGD(OptimizerConfig):
    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("optimizer.momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true: needs optimizer.momentum greater than 0")


@dataclass(kw_only=True)
class AdamW(OptimizerConfig):
    name: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2:
            raise ValueError(f"optimizer.betas={self.betas}: must be two numbers")
        for beta in self.betas:
            fraction("optimizer.betas", beta)


OPTIMIZERS = (AdamW, SGD)


@dataclass(kw_only=True)
class EngineConfig:
    lag: Any = 2
    """Batches by which a target message leaves earlier, per hop; ``exact`` is the locked algorithm on one process."""
    depth: int = 2
    """Activation messages that a receiver accepts ahead of the block that takes them."""
    target_depth: int | None = None
    """The same for target messages; by default ``lag``, and never less."""
    threads: Any = "auto"
    """Intra-op threads of every process; ``auto`` is cores / blocks, at least 1."""
    backend: str = "auto"
    precision: str = "fp32"
    """``bf16`` computes under autocast, with parameters and messages in float32; ``auto`` does so where the processor
    has units for it (CUDA from compute capability 8, AMX)."""
    channels_last: bool = False
    """Images with channels innermost, in memory and in messages: faster convolutions, and other bits."""
    compile: bool = False
    """Compile every block with torch.compile, which delays the first batch."""
    recovery: str = "all"
    """Ranks that restart when one is lost: ``all``, or the ``rank`` alone. The others then send it the messages that it
    needs again (local rules and ``naive``; gloo)."""
    replay: int = 256
    """Megabytes of messages that an edge keeps in memory to send again; further ones are in a file
    (``recovery=rank`` only)."""
    timeout: float = 300.0
    """Seconds that any single wait may last before the run ends."""

    def __post_init__(self) -> None:
        if self.lag != "exact" and not (type(self.lag) is int and self.lag >= 1):
            raise ValueError(f"engine.lag={self.lag}: allowed are exact and whole numbers of at least 1")
        size("engine.depth", self.depth, 1)
        room = 1 if self.lag == "exact" else self.lag
        if self.target_depth is not None and self.target_depth < room:
            raise ValueError(
                f"engine.target_depth={self.target_depth}: must be at least engine.lag={room}, "
                "or the prologue and a full activation channel block each other"
            )
        if self.threads != "auto" and not (type(self.threads) is int and self.threads >= 1):
            raise ValueError(f"engine.threads={self.threads}: allowed are auto and whole numbers of at least 1")
        one_of("engine.recovery", self.recovery, ("all", "rank"))
        size("engine.replay", self.replay, 1)
        one_of("engine.backend", self.backend, ("auto", "gloo", "nccl"))
        one_of("engine.precision", self.precision, ("fp32", "bf16", "auto"))
        if not 0 < self.timeout <= 1e6:  # the largest that every clock and timer can hold
            raise ValueError(f"engine.timeout={self.timeout}: must be greater than 0 and at most 1000000")


@dataclass(kw_only=True)
class CheckpointConfig:
    every: int = 0
    """Write a checkpoint after every so many batches, and at the end; 0 is never."""
    keep: int = 2
    """So many of them, the newest ones."""
    grace: float = 25.0
    """Seconds from SIGTERM or SIGINT to the end of the process, even if the checkpoint is not finished."""

    def __post_init__(self) -> None:
        at_least("checkpoint.every", self.every, 0)
        at_least("checkpoint.keep", self.keep, 1)
        if not 0 < self.grace <= 1e6:
            raise ValueError(f"checkpoint.grace={self.grace}: must be greater than 0 and at most 1000000")


@dataclass(kw_only=True)
class TrainLoopConfig:
    epochs: int = 1
    batch_size: int = 32
    microbatches: int = 4
    """Parts of a batch that a pipeline schedule sends one after the other (end-to-end references only)."""
    steps: int | None = None
    """Stop after so many batches, even if ``epochs`` means more."""
    evaluate_every: int = 0
    """Evaluate after every so many batches, on held out data (``data.validation``) or, if there is none, on the test
    data; 0 is only at the end."""
    test: bool = True
    """Evaluate on the test data after the last batch. Turn it off in runs that choose between settings."""
    log_every: int = 10
    """Report losses and accuracies every so many batches."""

    def __post_init__(self) -> None:
        at_least("train.epochs", self.epochs, 1)
        at_least("train.batch_size", self.batch_size, 1)
        at_least("train.microbatches", self.microbatches, 1)
        if self.steps is not None:
            at_least("train.steps", self.steps, 1)
        at_least("train.evaluate_every", self.evaluate_every, 0)
        at_least("train.log_every", self.log_every, 1)


@dataclass(kw_only=True)
class RunConfig:
    dir: str | None = None
    """Run directory; by default a new one under ``runs/``, named by rank 0. Of a sweep, the folder with all of its
    runs; by default ``runs/EXPERIMENT-SCALE``."""
    resume: str = "auto"
    """``auto`` goes on from the latest whole checkpoint of the run directory; ``never`` refuses a directory that holds
    a run; else the folder of a checkpoint, or of the run that wrote it, that a new run goes on from."""
    experiment: str | None = None
    """Name of the preset under ``conf/experiment``; each sets it itself."""
    display: bool = True
    """The live display on rank 0."""
    activations: int = 0
    """Save the outputs of every block for so many test samples after the last batch, in ``activations.npz``."""

    def __post_init__(self) -> None:
        at_least("run.activations", self.activations, 0)


SCALES = ("smoke", "cpu", "full")
PIPELINES = ("gpipe", "1f1b", "interleaved1f1b", "zbv")
SCHEDULES = ("auto", "free", *PIPELINES, "naive")


@dataclass(kw_only=True)
class TrainConfig:
    seed: int = 1
    blocks: int = 4
    scale: str = "full"
    """Choice among the values of an experiment's preset: ``smoke`` for a minute, ``cpu`` for an hour, ``full``."""
    device: str = "auto"
    schedule: str = "auto"
    """Order of work on the ranks: ``free`` for local rules, a pipeline schedule of torch or ``naive`` for end-to-end
    references. ``auto`` is ``free`` and ``1f1b``."""
    trace: bool = False
    """Record the times of all actions: ``trace.json`` for Perfetto and ``timeline.png`` in the run directory."""
    algorithm: AlgorithmConfig = MISSING
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        size("blocks", self.blocks, 1)
        one_of("scale", self.scale, SCALES)
        if self.scale != "full" and self.run.experiment is None:
            raise ValueError(f"scale={self.scale}: has no effect without experiment=NAME, whose values it chooses")
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        evaluates = self.train.test or self.data.validation or isinstance(self.data, OwnDataConfig)
        if not evaluates:
            raise ValueError("train.test=false: needs data.validation greater than 0, or nothing would be evaluated")
        cut = getattr(self.model, "cut", None)
        if isinstance(cut, list) and len(cut) != self.blocks:
            raise ValueError(f"model.cut={cut}: must name one layer count for each of blocks={self.blocks}")
