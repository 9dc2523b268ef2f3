"""Placement of block pairs and their copies on ranks, and the edges between them. Plain values: no tensors, no
processes."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple


class Stream(Enum):
    """The streams of messages: two between neighbouring blocks, and one between the copies of a block."""

    ACTIVATION = "activation"
    TARGET = "target"
    SYNC = "sync"


class Piece(NamedTuple):
    """The copy of ``block`` that replica ``replica`` of the pipeline has."""

    block: int
    replica: int = 0

    def __str__(self) -> str:
        return f"block {self.block}" + (f" of replica {self.replica}" if self.replica else "")


def column(blocks: Iterable[int], replica: int = 0) -> list[Piece]:
    """The pieces of ``blocks`` in one replica."""
    return [Piece(block, replica) for block in blocks]


@dataclass(frozen=True)
class Edge:
    """A directed channel between the blocks ``lower`` and ``lower + 1`` of a replica; or, of stream ``SYNC``, from the
    copy of block ``lower`` in ``replica`` to the one in replica ``peer``."""

    stream: Stream
    lower: int
    replica: int = 0
    peer: int = 0

    @property
    def source(self) -> Piece:
        return Piece(self.lower + (self.stream is Stream.TARGET), self.replica)

    @property
    def destination(self) -> Piece:
        if self.stream is Stream.SYNC:
            return Piece(self.lower, self.peer)
        return Piece(self.lower + (self.stream is Stream.ACTIVATION), self.replica)

    def __str__(self) -> str:
        if self.stream is Stream.SYNC:
            return f"sync edge of block {self.lower}, replica {self.replica}->{self.peer}"
        of = f" of replica {self.replica}" if self.replica else ""
        return f"{self.stream.value} edge {self.source.block}->{self.destination.block}{of}"


@dataclass(frozen=True)
class Topology:
    """``blocks`` block pairs, counted 1..N from the bottom, in each of ``replicas`` pipelines, counted 0..R-1, on
    ``ranks`` processes, counted 0..P-1.

    Every rank owns a contiguous run of the R * N pieces; run lengths differ by at most one, the longer ones first. The
    pieces are in the order of replicas, those of each bottom to top, or with ``inner="replicas"`` in the order of
    blocks, the copies of each together.
    """

    blocks: int
    ranks: int
    replicas: int = 1
    inner: str = "pipeline"

    def __post_init__(self) -> None:
        for name, value in (("blocks", self.blocks), ("replicas", self.replicas)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not 1 <= self.ranks <= self.blocks * self.replicas:
            pieces = f"blocks={self.blocks}" + (f" times replicas={self.replicas}" if self.replicas > 1 else "")
            raise ValueError(f"ranks={self.ranks}: must be between 1 and {pieces}, a rank owns at least one block")

    @cached_property
    def pieces(self) -> list[Piece]:
        """All pieces, in the order in which ranks own runs of them."""
        blocks, replicas = range(1, self.blocks + 1), range(self.replicas)
        if self.inner == "replicas":
            return [Piece(block, replica) for block in blocks for replica in replicas]
        return [Piece(block, replica) for replica in replicas for block in blocks]

    def pieces_of(self, rank: int) -> list[Piece]:
        """The pieces of ``rank``, by block and then by replica."""
        run, longer = divmod(self.blocks * self.replicas, self.ranks)
        first = rank * run + min(rank, longer)
        return sorted(self.pieces[first : first + run + (rank < longer)])

    def blocks_of(self, rank: int) -> range:
        """The blocks of ``rank``, bottom to top, where there is one pipeline."""
        assert self.replicas == 1
        blocks = [piece.block for piece in self.pieces_of(rank)]
        return range(blocks[0], blocks[-1] + 1)

    def rank_of(self, block: int, replica: int = 0) -> int:
        """The rank that owns ``block`` of ``replica``."""
        return self._ranks[Piece(block, replica)]

    @cached_property
    def _ranks(self) -> dict[Piece, int]:
        return {piece: rank for rank in range(self.ranks) for piece in self.pieces_of(rank)}

    def edges(self) -> list[Edge]:
        """All edges of the network, in the order in which every rank creates its process groups."""
        pipelines = [
            Edge(stream, lower, replica)
            for replica in range(self.replicas)
            for lower in range(1, self.blocks)
            for stream in (Stream.ACTIVATION, Stream.TARGET)
        ]
        replicas = range(self.replicas)
        return pipelines + [
            Edge(Stream.SYNC, block, replica, peer)
            for block in range(1, self.blocks + 1)
            for replica in replicas
            for peer in replicas
            if peer != replica
        ]

    def remote_edges(self) -> list[Edge]:
        """Edges between ranks, in the order of `edges`."""
        return [edge for edge in self.edges() if self.rank_of(*edge.source) != self.rank_of(*edge.destination)]
