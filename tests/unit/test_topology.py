import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterflow.topology import Edge, Piece, Stream, Topology

UP, DOWN = Stream.ACTIVATION, Stream.TARGET


@pytest.mark.parametrize(
    ("blocks", "ranks", "runs"),
    [
        (1, 1, [[1]]),
        (4, 4, [[1], [2], [3], [4]]),
        (4, 1, [[1, 2, 3, 4]]),
        (4, 2, [[1, 2], [3, 4]]),
        (5, 2, [[1, 2, 3], [4, 5]]),
        (8, 3, [[1, 2, 3], [4, 5, 6], [7, 8]]),
        (7, 4, [[1, 2], [3, 4], [5, 6], [7]]),
    ],
)
def test_blocks_of_ranks_by_hand(blocks: int, ranks: int, runs: list[list[int]]) -> None:
    topology = Topology(blocks, ranks)
    assert [list(topology.blocks_of(rank)) for rank in range(ranks)] == runs
    assert [topology.rank_of(block) for run in runs for block in run] == [
        rank for rank, run in enumerate(runs) for _ in run
    ]


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    blocks = draw(st.integers(1, 40))
    return Topology(blocks, draw(st.integers(1, blocks)))


@given(topologies())
def test_ranks_share_out_the_column(topology: Topology) -> None:
    runs = [list(topology.blocks_of(rank)) for rank in range(topology.ranks)]
    assert [block for run in runs for block in run] == list(range(1, topology.blocks + 1))
    lengths = [len(run) for run in runs]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    for rank, run in enumerate(runs):
        assert {topology.rank_of(block) for block in run} == {rank}


@pytest.mark.parametrize(
    ("edge", "source", "destination", "text"),
    [
        (Edge(UP, 3), 3, 4, "activation edge 3->4"),
        (Edge(DOWN, 3), 4, 3, "target edge 4->3"),
        (Edge(UP, 1), 1, 2, "activation edge 1->2"),
        (Edge(DOWN, 1), 2, 1, "target edge 2->1"),
    ],
)
def test_directions(edge: Edge, source: int, destination: int, text: str) -> None:
    assert (edge.source, edge.destination, str(edge)) == (Piece(source), Piece(destination), text)


@pytest.mark.parametrize(
    ("inner", "ranks", "runs"),
    [
        ("pipeline", 1, [[(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]]),
        ("pipeline", 2, [[(1, 0), (2, 0), (3, 0)], [(1, 1), (2, 1), (3, 1)]]),
        ("pipeline", 4, [[(1, 0), (2, 0)], [(1, 1), (3, 0)], [(2, 1)], [(3, 1)]]),
        ("replicas", 2, [[(1, 0), (1, 1), (2, 0)], [(2, 1), (3, 0), (3, 1)]]),
        ("replicas", 3, [[(1, 0), (1, 1)], [(2, 0), (2, 1)], [(3, 0), (3, 1)]]),
    ],
)
def test_pieces_of_ranks_by_hand(inner: str, ranks: int, runs: list[list[tuple[int, int]]]) -> None:
    topology = Topology(3, ranks, 2, inner)
    assert [topology.pieces_of(rank) for rank in range(ranks)] == runs


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["pipeline", "replicas"]), st.data())
def test_every_piece_has_one_rank(blocks: int, replicas: int, inner: str, data: st.DataObject) -> None:
    topology = Topology(blocks, data.draw(st.integers(1, blocks * replicas)), replicas, inner)
    owners = {piece: rank for rank in range(topology.ranks) for piece in topology.pieces_of(rank)}
    assert sorted(owners) == sorted(Piece(b, r) for b in range(1, blocks + 1) for r in range(replicas))
    assert all(topology.rank_of(*piece) == rank for piece, rank in owners.items())
    for rank in range(topology.ranks):
        pieces = topology.pieces_of(rank)
        assert pieces == sorted(pieces)
        for replica in {piece.replica for piece in pieces}:
            run = [piece.block for piece in pieces if piece.replica == replica]
            assert run == list(range(run[0], run[-1] + 1)), "the blocks of a replica on a rank are consecutive"


def test_copies_of_a_block_share_an_edge_in_each_direction() -> None:
    sync = [edge for edge in Topology(2, 1, 3).edges() if edge.stream is Stream.SYNC]
    assert len(sync) == len(set(sync)) == 2 * 3 * 2
    assert {(edge.source, edge.destination) for edge in sync} == {
        (Piece(b, r), Piece(b, q)) for b in (1, 2) for r in range(3) for q in range(3) if q != r
    }
    assert str(Edge(Stream.SYNC, 2, 0, 1)) == "sync edge of block 2, replica 0->1"
    assert str(Edge(UP, 1, 2)) == "activation edge 1->2 of replica 2"


def test_edges_in_their_one_order() -> None:
    assert Topology(1, 1).edges() == []
    assert Topology(3, 2).edges() == [Edge(UP, 1), Edge(DOWN, 1), Edge(UP, 2), Edge(DOWN, 2)]
    assert Topology(3, 3).edges() == Topology(3, 1).edges()


@pytest.mark.parametrize(
    ("blocks", "ranks", "between"), [(3, 3, [1, 2]), (3, 2, [2]), (3, 1, []), (8, 3, [3, 6]), (7, 4, [2, 4, 6])]
)
def test_remote_edges_by_hand(blocks: int, ranks: int, between: list[int]) -> None:
    assert Topology(blocks, ranks).remote_edges() == [Edge(stream, lower) for lower in between for stream in (UP, DOWN)]


@given(topologies())
def test_neighbours_share_two_edges(topology: Topology) -> None:
    """Every remote edge joins neighbouring ranks, one of each stream."""
    remote = topology.remote_edges()
    assert remote == [edge for edge in topology.edges() if edge in remote]  # a part of edges(), in its order
    ends = [(topology.rank_of(*edge.source), topology.rank_of(*edge.destination)) for edge in remote]
    assert ends == [pair for r in range(topology.ranks - 1) for pair in ((r, r + 1), (r + 1, r))]


@pytest.mark.parametrize(
    ("blocks", "ranks", "text"),
    [
        (0, 1, r"^blocks=0: must be at least 1$"),
        (-2, 1, r"^blocks=-2: must be at least 1$"),
        (3, 4, r"^ranks=4: must be between 1 and blocks=3, a rank owns at least one block$"),
        (3, 0, r"^ranks=0: must be between 1 and blocks=3, a rank owns at least one block$"),
    ],
)
def test_impossible_columns(blocks: int, ranks: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Topology(blocks, ranks)
