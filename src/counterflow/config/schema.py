"""The configuration schema. Every option is checked here, before any process group exists.

The YAML files under ``conf/`` only choose values; names, types and limits are these dataclasses. Errors are
``ValueError`` of one line: the key, the value, and what is allowed.
"""

# ruff: noqa: RUF009  # `checked` makes a field

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from counterflow.config.model import ModelConfig
from counterflow.config.optimizers import OptimizerConfig
from counterflow.config.replicas import SyncConfig, TopologyConfig
from counterflow.config.validators import (
    NamedOptions,
    Options,
    at_least,
    checked,
    count_or,
    fraction,
    one_of,
    positive,
    rate,
    size,
)

_LONGEST = 1_000_000
"""Longest limits of waits in seconds: every clock and timer can hold them."""

_DATA_NAMES = ("digits", "fashion_mnist", "mnist", "cifar10", "cifar100", "reverse", "image_folder", "text", "stdlib")


@dataclass(kw_only=True)
class DataConfig(Options, key="data"):
    name: str = checked(MISSING, one_of, _DATA_NAMES)
    root: str = "data"
    """Folder that holds the data set; for own images also an ``.npz`` file, for text also one file of it."""
    download: bool = False
    validation: float = checked(0.0, fraction)
    """Share of the training data that is held out of training, the same samples in every run: evaluations before the
    end are on these, so that test data is looked at once."""
    limit: int | None = checked(None, at_least, 1)
    """Train on so many of the remaining samples, the same ones in every run; all if not set."""
    length: int = checked(128, size, 1)
    """Tokens of a window of text (``text`` and ``stdlib`` only)."""
    evaluated: int = checked(1024, size, 1)
    """Windows of the held-out text, and of the test text, that are evaluated, at even distances; all if there are
    fewer (``text`` and ``stdlib`` only)."""
    tokenizer: str | None = None
    """Tokenizer file of Hugging Face's ``tokenizers`` by which text becomes tokens; bytes if not set (``text`` and
    ``stdlib`` only)."""
    cache: str = "~/.cache/counterflow"
    """Folder for the tokens of a text, which are written there once."""
    workers: int = checked(0, size, 0, 256)
    """Processes that read images from files ahead of the block that needs them; 0 reads all into memory at the start
    (``image_folder`` and Datasets only). A process has its own, if inputs or labels enter the network there."""
    augment: bool = False
    """Random crops of a padded image, and horizontal flips, deterministic in (seed, epoch, index)."""
    padding: int = checked(2, size, 0)
    """Pixels of padding before a crop (``augment=true`` only)."""
    pad: str = checked("zeros", one_of, ("zeros", "reflect"))
    """Padding of ``zeros``, or of the image's own pixels that its edges ``reflect`` (``augment=true`` only)."""
    flip: bool = True
    """Horizontal flips (``augment=true`` only)."""
    alternate: bool = False
    """An image that one epoch flips the next one does not; the first is at random (``flip=true`` only)."""
    test_views: int = checked(1, one_of, (1, 2, 6))
    """Views of an image over which the evaluation after the last batch averages scores for ``tta_accuracy``: 2 adds its
    mirror image, 6 also both of these shifted by a pixel, up and to the left, and down and to the right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_views > 1 and not self.flip:
            raise ValueError(f"data.test_views={self.test_views}: flips images, allowed with data.flip=false is 1")
        if self.tokenizer is not None and self.name not in ("text", "stdlib"):
            raise ValueError(f"data.tokenizer={self.tokenizer}: is for data=text and data=stdlib, not data={self.name}")


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
        DataConfig(name="text", validation=0.05),
        DataConfig(name="stdlib", validation=0.05),
    )
}
"""The data sets that have a loader, with their defaults."""


@dataclass(kw_only=True)
class OwnDataConfig(DataConfig):
    """The record of data that a script passed to a Trainer."""

    name: str = checked("custom", one_of, ("custom",))


@dataclass(kw_only=True)
class HeadConfig(Options, key="algorithm.head"):
    """The head by which a local rule reads a block's output: convolutions, pooling, layer norm.

    One family for all local rules: BLL's latent head, Pred-Sim's classifier and AL's bridge begin with it.
    """

    convolutions: int = checked(3, size, 0)
    """Strided 3x3 convolutions before the pooling of feature maps, fewer where a map is one pixel before; 0 is a
    pooled head without parameters."""
    width: int = checked(64, size, 1)
    """Channels of these convolutions."""
    dim: int = checked(512, size, 1)
    """Feature maps are pooled until the head has at most so many dimensions."""
    layers: int = checked(0, size, 0)
    """Causal decoder layers before the norm, of outputs that are sequences: private layers of blockwise training."""


@dataclass(kw_only=True)
class LatentConfig(Options, key="algorithm.latent"):
    """The distribution over a block's latent ``z_k``, whose natural parameters the head gives."""

    family: str = checked("gaussian", one_of, ("gaussian", "bernoulli", "categorical"))
    categories: int = checked(8, size, 2)
    """Size of one categorical variable; the latent is a vector of several (``family=categorical`` only)."""


@dataclass(kw_only=True)
class FeedbackConfig(Options, key="algorithm.feedback"):
    """The feedback block ``g_k`` that maps the code book of block k to that of block k-1."""

    kind: str = checked("mlp", one_of, ("linear", "mlp"))
    hidden: int = checked(128, size, 1)
    """Width of the hidden layer (``kind=mlp`` only)."""
    norm: float = checked(1.0, positive)
    """Root mean square norm of the codes of a book, after centring over the classes."""
    lr_scale: float = checked(0.1, rate)
    """Learning rate of phi as a multiple of that of theta."""
    refresh: int = checked(1, at_least, 1)
    """A new code book goes down every so many batches; labels go down with every batch."""


@dataclass(kw_only=True)
class AlgorithmConfig(NamedOptions, key="algorithm"):
    """A learning rule and its options; each module of ``algorithms/`` brings its own."""

    predicts_down: ClassVar[bool] = False
    """Labels enter at the bottom, no targets come down while training, and the prediction comes out at the bottom."""


@dataclass(kw_only=True)
class EngineConfig(Options, key="engine"):
    lag: Any = checked(2, count_or, "exact")
    """Batches by which a target message leaves earlier, per hop; ``exact`` is the locked algorithm on one process.
    Under ``naive`` and ``pipedream``, batches between a batch and its gradient, per hop."""
    depth: int = checked(2, size, 1)
    """Activation messages that a receiver accepts ahead of the block that takes them."""
    target_depth: int | None = None
    """The same for target messages; by default ``lag``, and never less."""
    threads: Any = checked("auto", count_or, "auto")
    """Intra-op threads of every process; ``auto`` is cores / (blocks * replicas), at least 1."""
    backend: str = checked("auto", one_of, ("auto", "gloo", "nccl"))
    precision: str = checked("fp32", one_of, ("fp32", "bf16", "auto"))
    """``bf16`` computes under autocast, with parameters and messages in float32; ``auto`` does so where the processor
    has units for it (CUDA from compute capability 8, AMX, AVX-512 BF16)."""
    wire: str = checked("fp32", one_of, ("fp32", "bf16", "int8"))
    """Numbers in messages between blocks, of one process too: ``bf16`` halves what the wire carries. ``int8``, with a
    scale for every row, makes a quarter of activations and gradients; other numbers are as under ``bf16``."""
    channels_last: bool = False
    """Images with channels innermost, in memory and in messages: faster convolutions, and other bits."""
    compile: bool = False
    """Compile every block with torch.compile, which delays the first batch."""
    recompute: bool = False
    """Keep only the inputs of layers for the backward pass, and compute their insides again: less memory, and the
    same bits."""
    recovery: str = checked("all", one_of, ("all", "rank"))
    """Ranks that restart when one is lost: ``all``, or the ``rank`` alone. The others then send it the messages that it
    needs again (local rules, ``naive`` and ``pipedream``; gloo)."""
    replay: int = checked(256, size, 1)
    """Megabytes of messages that an edge keeps in memory to send again; further ones are in a file
    (``recovery=rank`` only)."""
    secret_file: str | None = None
    """File with a secret of at least 16 bytes that all ranks share and that its owner alone may read: both ends of a
    connection prove that they have it before anything else is read (``recovery=rank`` only; gloo and the launcher's
    store do not know it)."""
    timeout: float = checked(300.0, positive, _LONGEST)
    """Seconds that any single wait may last before the run ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.recompute:
            raise ValueError("engine.recompute=true: allowed with engine.compile=true is false")
        if self.secret_file is not None and self.recovery != "rank":
            raise ValueError(
                f"engine.secret_file={self.secret_file}: guards the sockets of engine.recovery=rank, allowed with "
                f"engine.recovery={self.recovery} is null"
            )
        room = 1 if self.lag == "exact" else self.lag
        if self.target_depth is not None and self.target_depth < room:
            raise ValueError(
                f"engine.target_depth={self.target_depth}: must be at least engine.lag={room}, "
                "or the prologue and a full activation channel block each other"
            )


@dataclass(kw_only=True)
class CheckpointConfig(Options, key="checkpoint"):
    every: int = checked(0, at_least, 0)
    """Write a checkpoint after every so many batches, and at the end; 0 is never."""
    keep: int = checked(2, at_least, 1)
    """So many of them, the newest ones."""
    best: bool = False
    """Keep the weights of the best evaluation of held-out data, in ``best.safetensors``: of the highest accuracy, or
    of text of the fewest bits per byte; of equal ones, the first."""
    transport: str = checked("shared", one_of, ("shared", "gather"))
    """Way of the files of blocks to ``run.dir``: each rank writes its own into a folder that all nodes ``shared``, or
    rank 0 alone sees it, and ``gather`` sends them there."""
    grace: float = checked(25.0, positive, _LONGEST)
    """Seconds from SIGTERM or SIGINT to the end of the process, even if the checkpoint is not finished."""


@dataclass(kw_only=True)
class TrainLoopConfig(Options, key="train"):
    epochs: int = checked(1, at_least, 1)
    batch_size: int = checked(32, at_least, 1)
    accumulate: int = checked(1, size, 1)
    """Equal parts of a batch that travel and are learnt one after the other, before one update: less memory, and
    neighbours that wait less for each other (local rules only)."""
    microbatches: int = checked(4, at_least, 1)
    """Parts of a batch that a pipeline schedule sends one after the other (end-to-end references only)."""
    steps: int | None = checked(None, at_least, 1)
    """Stop after so many batches, even if ``epochs`` means more."""
    evaluate_every: int = checked(0, at_least, 0)
    """Evaluate after every so many batches, on held out data (``data.validation``) or, if there is none, on the test
    data; 0 is only at the end."""
    patience: int = checked(0, at_least, 0)
    """End the run early, some batches after so many evaluations of held-out data in a row without a higher accuracy,
    or of text without fewer bits per byte, than the best before them; 0 is never. ``checkpoint.best`` keeps the weights
    of the best one."""
    test: bool = True
    """Evaluate on the test data after the last batch. Turn it off in runs that choose between settings."""
    log_every: int = checked(10, at_least, 1)
    """Report losses and accuracies every so many batches."""


def _loggers(key: str, values: list[str]) -> None:
    for value in values:
        one_of(key, value, ("tensorboard", "wandb"))
    if len(set(values)) < len(values):
        raise ValueError(f"{key}={values}: must name each logger once")


@dataclass(kw_only=True)
class RunConfig(Options, key="run"):
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
    loggers: list[str] = checked(["tensorboard"], _loggers)
    """Receivers of the metrics beside the run directory: ``tensorboard``, ``wandb``, or [] for none."""
    activations: int = checked(0, at_least, 0)
    """Save the outputs of every block for so many test samples after the last batch, in ``activations.npz``."""


SCALES = ("smoke", "cpu", "full")
PIPELINES = ("gpipe", "1f1b", "interleaved1f1b", "zbv")
ASYNCHRONOUS = ("naive", "pipedream")
"""Schedules of backprop in which no block waits for a gradient."""
SCHEDULES = ("auto", "free", *PIPELINES, *ASYNCHRONOUS)


@dataclass(kw_only=True)
class TrainConfig(Options):
    seed: int = checked(1, at_least, 0)
    blocks: int = checked(4, size, 1)
    replicas: int = checked(1, size, 1)
    """Copies of the pipeline, each of which trains on its share of every batch (local rules only)."""
    scale: str = checked("full", one_of, SCALES)
    """Choice among the values of an experiment's preset: ``smoke`` for a minute, ``cpu`` for an hour, ``full``."""
    device: str = checked("auto", one_of, ("auto", "cpu", "cuda"))
    schedule: str = checked("auto", one_of, SCHEDULES)
    """Order of work on the ranks: ``free`` for local rules, a pipeline schedule of torch for end-to-end references,
    ``naive`` or ``pipedream`` for backprop. ``auto`` is ``free`` and ``1f1b``."""
    trace: bool = False
    """Record the times of all actions: ``trace.json`` for Perfetto and ``timeline.png`` in the run directory."""
    algorithm: AlgorithmConfig = MISSING
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainLoopConfig = field(default_factory=TrainLoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale != "full" and self.run.experiment is None:
            raise ValueError(f"scale={self.scale}: has no effect without experiment=NAME, whose values it chooses")
        evaluates = self.train.test or self.data.validation or isinstance(self.data, OwnDataConfig)
        if not evaluates:
            raise ValueError("train.test=false: needs data.validation greater than 0, or nothing would be evaluated")
        for key, value in (("checkpoint.best", self.checkpoint.best), ("train.patience", self.train.patience)):
            given = f"{key}={str(value).lower()}"
            if value and not (self.data.validation and self.train.evaluate_every):
                raise ValueError(f"{given}: needs data.validation and train.evaluate_every greater than 0")
            if value and self.schedule in ASYNCHRONOUS:  # its rows of a batch are not whole at a checkpoint
                raise ValueError(f"{given}: is for all values of schedule but {' and '.join(ASYNCHRONOUS)}")
        self._check_asynchronous()
        if self.checkpoint.transport == "gather" and self.engine.recovery == "rank":
            raise ValueError("checkpoint.transport=gather: allowed for engine.recovery=rank is shared")
        parts, batch = self.train.accumulate, self.train.batch_size
        if batch % parts:
            raise ValueError(f"train.accumulate={parts}: must divide train.batch_size={batch}")
        if batch % (parts * self.replicas):
            raise ValueError(
                f"replicas={self.replicas}: with train.accumulate={parts}, must divide train.batch_size={batch}"
            )
        if self.replicas == 1 and self.sync != SyncConfig():
            raise ValueError(f"sync.mode={self.sync.mode}: has no effect without replicas of at least 2")
        if self.sync.mode == "parameters":
            # The outer copy is an average itself, and a meeting ahead would have to know when the run ends.
            for key, number in (("optimizer.average", self.optimizer.average), ("train.patience", self.train.patience)):
                if number:
                    raise ValueError(f"{key}={number:g}: allowed for sync.mode=parameters is 0")
        if self.replicas > 1 and self.engine.lag == "exact":
            raise ValueError(f"engine.lag=exact: is for replicas=1, not for replicas={self.replicas}")
        cut = getattr(self.model, "cut", None)
        if isinstance(cut, list) and len(cut) != self.blocks:
            raise ValueError(f"model.cut={cut}: must name one layer count for each of blocks={self.blocks}")

    def _check_asynchronous(self) -> None:
        """Refuse what does not go together with a pipeline of backprop in which no block waits for a gradient."""
        if self.schedule not in ASYNCHRONOUS:
            return
        if self.engine.lag == "exact":
            raise ValueError(f"engine.lag=exact: allowed for schedule={self.schedule} are whole numbers of at least 1")
        if self.optimizer.clip:  # the gradients of a batch reach each block at another time
            raise ValueError(f"optimizer.clip={self.optimizer.clip:g}: allowed for schedule={self.schedule} is 0")
        if self.schedule == "pipedream" and self.engine.compile:  # compiled blocks hold on to their own weights
            raise ValueError("engine.compile=true: allowed for schedule=pipedream is false")
