"""Placement of block pairs on ranks, and the edges between them. Plain values: no tensors, no processes."""

from dataclasses import dataclass
from enum import Enum


class Stream(Enum):
    """The two streams of messages between blocks."""

    ACTIVATION = "activation"
    TARGET = "target"


@dataclass(frozen=True)
class Edge:
    """A directed channel between the neighbouring blocks ``lower`` and ``lower + 1``."""

    stream: Stream
    lower: int

    @property
    def source(self) -> int:
        return self.lower if self.stream is Stream.ACTIVATION else self.lower + 1

    @property
    def destination(self) -> int:
        return self.lower + 1 if self.stream is Stream.ACTIVATION else self.lower

    def __str__(self) -> str:
        return f"{self.stream.value} edge {self.source}->{self.destination}"


@dataclass(frozen=True)
class Topology:
    """``blocks`` block pairs, counted 1..N from the bottom, on ``ranks`` processes, counted 0..P-1.

    Every rank owns a contiguous run of blocks; run lengths differ by at most one, the longer ones at the bottom.
    """

    blocks: int
    ranks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks={self.blocks}: must be at least 1")
        if not 1 <= self.ranks <= self.blocks:
            raise ValueError(
                f"ranks={self.ranks}: must be between 1 and blocks={self.blocks}, a rank owns at least one block"
            )

    def blocks_of(self, rank: int) -> range:
        """The blocks of ``rank``, bottom to top."""
        run, longer = divmod(self.blocks, self.ranks)
        first = 1 + rank * run + min(rank, longer)
        return range(first, first + run + (rank < longer))

    def rank_of(self, block: int) -> int:
        """The rank that owns ``block``."""
        return next(rank for rank in range(self.ranks) if block in self.blocks_of(rank))

    def edges(self) -> list[Edge]:
        """All edges of the network, in the order in which every rank creates its process groups."""
        return [Edge(stream, lower) for lower in range(1, self.blocks) for stream in (Stream.ACTIVATION, Stream.TARGET)]

    def remote_edges(self) -> list[Edge]:
        """Edges between ranks, in the order of `edges`."""
        return [edge for edge in self.edges() if self.rank_of(edge.source) != self.rank_of(edge.destination)]
