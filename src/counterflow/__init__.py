"""Train one network on many processes without the backward lock: activations flow up, targets flow down.

The names below are the public interface. Each is loaded when it is first used, so that the import alone takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterflow import data as data
    from counterflow.algorithms.al import AL as AL
    from counterflow.algorithms.bll import BLL as BLL
    from counterflow.algorithms.end_to_end import Backprop as Backprop
    from counterflow.algorithms.end_to_end import FeedbackAlignment as FeedbackAlignment
    from counterflow.algorithms.optimizer import BatchPart as BatchPart
    from counterflow.algorithms.optimizer import BlockOptimizer as BlockOptimizer
    from counterflow.algorithms.predsim import PredSim as PredSim
    from counterflow.algorithms.rule import BlockContext as BlockContext
    from counterflow.algorithms.rule import LocalAlgorithm as LocalAlgorithm
    from counterflow.algorithms.rule import LocalRule as LocalRule
    from counterflow.algorithms.rule import PerBlock as PerBlock
    from counterflow.algorithms.rule import Prediction as Prediction
    from counterflow.algorithms.rule import RuleContext as RuleContext
    from counterflow.algorithms.rule import RuleSet as RuleSet
    from counterflow.algorithms.rule import Task as Task
    from counterflow.config import SGD as SGD
    from counterflow.config import AdamW as AdamW
    from counterflow.config import CheckpointConfig as CheckpointConfig
    from counterflow.config import DataConfig as DataConfig
    from counterflow.config import EngineConfig as EngineConfig
    from counterflow.config import FeedbackConfig as FeedbackConfig
    from counterflow.config import HeadConfig as HeadConfig
    from counterflow.config import LatentConfig as LatentConfig
    from counterflow.config import Muon as Muon
    from counterflow.config import SyncConfig as SyncConfig
    from counterflow.engine.run_context import BlockError as BlockError
    from counterflow.engine.run_context import PreemptedError as PreemptedError
    from counterflow.inference.load import load as load
    from counterflow.inference.predictor import Predictor as Predictor
    from counterflow.metrics.block_metrics import StepMetrics as StepMetrics
    from counterflow.metrics.callback import Callback as Callback
    from counterflow.metrics.callback import CallbackError as CallbackError
    from counterflow.metrics.callback import ProgressDisplay as ProgressDisplay
    from counterflow.metrics.callback import RunInfo as RunInfo
    from counterflow.metrics.run_dir import FinishedError as FinishedError
    from counterflow.metrics.tensorboard import TensorBoardLogger as TensorBoardLogger
    from counterflow.metrics.wandb import WandbLogger as WandbLogger
    from counterflow.models.head import Head as Head
    from counterflow.trainer.fit import FitResult as FitResult
    from counterflow.trainer.spawn import SpawnError as SpawnError
    from counterflow.trainer.spawn import spawn as spawn
    from counterflow.trainer.trainer import Trainer as Trainer
    from counterflow.transport.channel import ChannelError as ChannelError

_MODULES = {
    "counterflow.algorithms.al": ["AL"],
    "counterflow.algorithms.bll": ["BLL"],
    "counterflow.algorithms.end_to_end": ["Backprop", "FeedbackAlignment"],
    "counterflow.algorithms.optimizer": ["BatchPart", "BlockOptimizer"],
    "counterflow.algorithms.predsim": ["PredSim"],
    "counterflow.algorithms.rule": [
        "BlockContext", "LocalAlgorithm", "LocalRule", "PerBlock", "Prediction", "RuleContext", "RuleSet", "Task",
    ],
    "counterflow.config": [
        "SGD", "AdamW", "CheckpointConfig", "DataConfig", "EngineConfig", "FeedbackConfig", "HeadConfig",
        "LatentConfig", "Muon", "SyncConfig",
    ],
    "counterflow.engine.run_context": ["BlockError", "PreemptedError"],
    "counterflow.inference.load": ["load"],
    "counterflow.inference.predictor": ["Predictor"],
    "counterflow.metrics.block_metrics": ["StepMetrics"],
    "counterflow.metrics.callback": ["Callback", "CallbackError", "ProgressDisplay", "RunInfo"],
    "counterflow.metrics.run_dir": ["FinishedError"],
    "counterflow.metrics.tensorboard": ["TensorBoardLogger"],
    "counterflow.metrics.wandb": ["WandbLogger"],
    "counterflow.models.head": ["Head"],
    "counterflow.trainer.fit": ["FitResult"],
    "counterflow.trainer.spawn": ["SpawnError", "spawn"],
    "counterflow.trainer.trainer": ["Trainer"],
    "counterflow.transport.channel": ["ChannelError"],
}  # fmt: skip
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["data", *_HOMES]  # one list


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("counterflow")
    if name == "data":
        return import_module("counterflow.data")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'counterflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
