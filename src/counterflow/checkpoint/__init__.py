"""Checkpoints (section 2 of the design): a cut through all blocks after the same batch, a file for every block, and a
manifest that makes them count. Nothing here knows of models or of processes."""

from counterflow.checkpoint.archive import Archive
from counterflow.checkpoint.ledger import Ledger
from counterflow.checkpoint.manifest import Manifest
from counterflow.checkpoint.saved import Saved
from counterflow.checkpoint.shelf import Shelf
from counterflow.checkpoint.state import BlockState

__all__ = ["Archive", "BlockState", "Ledger", "Manifest", "Saved", "Shelf"]
