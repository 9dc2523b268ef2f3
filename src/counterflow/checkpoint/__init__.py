"""Checkpoints: one file per block, all after the same training batch, and a manifest that completes them.

A checkpoint is a consistent cut through all blocks (docs/concepts.md, In-band events).
This package knows nothing of models or ranks.
"""

from counterflow.checkpoint.best_weights import BestWeights
from counterflow.checkpoint.directory import (
    BlockWritten,
    CheckpointCommitter,
    CheckpointDirectory,
    Manifest,
    ManifestHeader,
)
from counterflow.checkpoint.writer import BlockState, CheckpointWriter

__all__ = [
    "BestWeights",
    "BlockState",
    "BlockWritten",
    "CheckpointCommitter",
    "CheckpointDirectory",
    "CheckpointWriter",
    "Manifest",
    "ManifestHeader",
]
