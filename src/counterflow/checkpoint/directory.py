"""Checkpoints of a run on disk: their manifests, their folders, and their commit on rank 0.

A checkpoint is complete with its manifest, which is written once all blocks are, and lists their files.
"""

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.checksum import sha256

_log = logging.getLogger(__name__)

NAME = "manifest.json"
FORMAT = 1
_PREFIX = "batch-"
_MAX_BYTES = 16 << 20
"""Longer manifests are corrupt and not read."""


class CorruptCheckpointError(Exception):
    """An incomplete or altered checkpoint; the text gives the reason."""


class Report:
    """Dataclass that a rank sends to rank 0 as text."""

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class BlockWritten(Report):
    """Report that a block was written, or could not be written."""

    batches: int
    """Training batches before the checkpoint."""
    block: int
    """Number of the block; of the copies in further replicas, the numbers go on, replica after replica."""
    nbytes: int
    sha256: str
    error: str = ""
    """Why the file is missing; empty if it was written."""
    evaluated: bool = False
    """These are the weights of an evaluation, and no checkpoint."""

    def of(self, path: Path) -> "BlockWritten":
        """This report with size and checksum of the file that was written. Raises ``OSError``."""
        return replace(self, nbytes=path.stat().st_size, sha256=sha256(path))

    def failed(self, error: Exception) -> "BlockWritten":
        """This report of a file that could not be written."""
        return replace(self, error=getattr(error, "strerror", None) or str(error).splitlines()[0])


@dataclass(frozen=True)
class ManifestHeader:
    """The part of a manifest that is the same for all checkpoints of a run."""

    identity: Mapping[str, Any]
    """Everything that determines the run's result, by configuration key."""
    cut: Sequence[int]
    """Number of layers of every block, bottom to top."""
    versions: Mapping[str, str | None]
    """Versions of the software, and the hardware: others may round differently."""


@dataclass(frozen=True)
class Manifest(ManifestHeader):
    batches: int
    """Training batches before the checkpoint."""
    blocks: Sequence[Mapping[str, Any]]
    """``nbytes`` and ``sha256`` of every block's file, bottom to top, replica after replica."""
    format: int = FORMAT


def block_file(folder: Path, block: int) -> Path:
    """Path of a block's file in a checkpoint folder."""
    return folder / f"block-{block:04}.pt"


def load(folder: Path) -> Manifest:
    """Read the manifest in ``folder`` and verify the files it lists.

    Raises:
        CorruptCheckpointError: the manifest or a file is missing, or not as written.
        ValueError: another version of counterflow wrote the manifest.
    """
    manifest = _parse(folder / NAME)
    for block, entry in enumerate(manifest.blocks, 1):
        path = block_file(folder, block)
        try:
            nbytes = path.stat().st_size
            if nbytes != entry["nbytes"]:
                raise CorruptCheckpointError(f"{path.name} has {nbytes} bytes, {entry['nbytes']} were written")
            if sha256(path) != entry["sha256"]:
                raise CorruptCheckpointError(f"{path.name} is not what was written")
        except OSError as error:
            raise CorruptCheckpointError(f"{path.name}: {error.strerror}") from error
    return manifest


def _parse(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"it has no {NAME}, so it was never completed") from None
    except OSError as error:
        raise CorruptCheckpointError(f"{NAME}: {error.strerror}") from error
    try:
        content = json.loads(text) if len(text) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{NAME} is damaged")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: is of format {content.get('format')}, this version of counterflow reads {FORMAT}")
    try:
        manifest = Manifest(**content)
        files = [(entry["nbytes"], entry["sha256"]) for entry in manifest.blocks]
        if not (
            all(type(nbytes) is int and isinstance(digest, str) for nbytes, digest in files)
            and type(manifest.batches) is int
            and manifest.batches > 0
            and all(type(layers) is int for layers in manifest.cut)
            and len(files) > 0 == len(files) % len(manifest.cut)
            and isinstance(manifest.identity, dict)
            and isinstance(manifest.versions, dict)
        ):
            raise TypeError("an entry is of another type")
    except (TypeError, KeyError) as error:
        raise CorruptCheckpointError(f"{NAME} is damaged") from error
    return manifest


@dataclass(frozen=True)
class CheckpointDirectory:
    path: Path

    def folder(self, batches: int) -> Path:
        """Folder of the checkpoint after ``batches`` training batches."""
        return self.path / f"{_PREFIX}{batches:08}"

    def folders(self) -> list[tuple[int, Path]]:
        """All checkpoints, complete or not, newest first: the training batches before each, and its folder."""
        found = [(path.name.removeprefix(_PREFIX), path) for path in self.path.glob(f"{_PREFIX}*") if path.is_dir()]
        return sorted(
            ((int(digits), path) for digits, path in found if digits.isdecimal() and digits.isascii()), reverse=True
        )

    def latest(self, before: int, log: Callable[[str], None]) -> tuple[Path, Manifest] | None:
        """Newest complete checkpoint after fewer than ``before`` batches; ``log`` gets a line per corrupt one.

        Raises:
            ValueError: another version of counterflow wrote the checkpoint.
        """
        for batches, folder in ((number, path) for number, path in self.folders() if number < before):
            try:
                manifest = load(folder)
                if manifest.batches != batches:
                    raise CorruptCheckpointError(f"{NAME} is of the checkpoint after {manifest.batches} batches")
            except CorruptCheckpointError as error:
                log(f"{folder}: is no whole checkpoint ({error}), an older one is looked for")
            else:
                return folder, manifest
        return None

    def has_complete(self, before: int) -> bool:
        """A checkpoint after fewer than ``before`` batches has a manifest; nothing is verified."""
        return any(batches < before and (folder / NAME).exists() for batches, folder in self.folders())

    def forget_after(self, batches: int) -> None:
        """Remove all checkpoints after more than ``batches`` batches, corrupt ones too: the run writes them again."""
        for number, folder in self.folders():
            if number > batches:
                remove_folder(folder)

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` complete checkpoints.

        An incomplete one stays if it is newer than those kept: its blocks may still be being written.
        """
        complete = 0
        for _, folder in self.folders():
            if complete >= keep:
                remove_folder(folder)
            complete += (folder / NAME).exists()


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint, or what there is of it."""
    (folder / NAME).unlink(missing_ok=True)  # first: a half removed checkpoint must not look complete
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class CheckpointCommitter:
    """Completes a checkpoint once every block of it is on the disk, and removes old ones.

    If the disk is full, the checkpoint is skipped with a warning; training continues.
    """

    directory: CheckpointDirectory
    header: ManifestHeader
    """The run's part of every manifest."""
    keep: int
    """Number of complete checkpoints to keep."""
    batches: int
    """Training batches of the whole run."""
    latest: int = 0
    """Training batches before the newest checkpoint; at first, before this start of the run."""
    on_commit: Callable[[int], None] = lambda batches: None
    """Called with the number of batches of every completed checkpoint, except the run's last."""
    replicas: int = 1
    """Copies of every block."""
    pending: dict[int, dict[int, BlockWritten]] = field(default_factory=lambda: defaultdict(dict))
    """Reports about checkpoints that are not complete, by batches and block."""

    def add(self, written: BlockWritten) -> None:
        """Take the report of one block, in any order."""
        if written.batches <= self.latest:  # a restarted rank reports its blocks again
            return
        blocks = self.pending[written.batches]
        blocks[written.block] = written
        if len(blocks) < len(self.header.cut) * self.replicas:
            return
        del self.pending[written.batches]
        failures = sorted({f"block {b.block}: {b.error}" for b in blocks.values() if b.error})
        files = [{"nbytes": blocks[b].nbytes, "sha256": blocks[b].sha256} for b in sorted(blocks)]
        try:
            if failures:
                raise OSError(f"{failures[0]}{' and others' if failures[1:] else ''}")
            manifest = Manifest(**vars(self.header), batches=written.batches, blocks=files)
            atomic_write(self.directory.folder(written.batches) / NAME, json.dumps(asdict(manifest), indent=1).encode())
            self.latest = written.batches
            # The last checkpoint is of a finished run, which nothing resumes: until then an older one may be needed.
            if written.batches < self.batches:
                self.on_commit(written.batches)
                self.directory.prune(self.keep)
        except OSError as error:
            _log.warning(
                f"no checkpoint after batch {written.batches - 1}: {error.strerror or error}; training goes on, and so "
                "does the last whole checkpoint"
            )

    def finish(self) -> None:
        """Prune once more at the end of the run."""
        self.directory.prune(self.keep)
