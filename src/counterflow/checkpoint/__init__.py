"""Checkpoints (section 2 of the design): a cut through all blocks after the same batch, a file for every block, and a
manifest that makes them count. Nothing here knows of models or of processes."""

from counterflow.checkpoint.block_state import BlockState
from counterflow.checkpoint.block_written import BlockWritten
from counterflow.checkpoint.committer import CheckpointCommitter
from counterflow.checkpoint.directory import CheckpointDirectory
from counterflow.checkpoint.manifest import Manifest
from counterflow.checkpoint.writer import CheckpointWriter

__all__ = ["BlockState", "BlockWritten", "CheckpointCommitter", "CheckpointDirectory", "CheckpointWriter", "Manifest"]
