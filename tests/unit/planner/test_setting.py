"""Pieces on nodes: what crosses, and what is left of a link for one of many edges."""

from typing import Any

import pytest

from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.model_profile import StageEstimate
from counterflow.planner.options import Cluster
from counterflow.planner.setting import Setting
from counterflow.schedule.forecast import LinkSpec, StageCost
from counterflow.topology import Edge, Stream

UP, DOWN, PARAMETERS = 1000, 10, 600
STAGE = StageEstimate(cost=StageCost(1.0, 2.0), states=4 * PARAMETERS, kept=50, up=UP, down=DOWN, parameters=PARAMETERS)


def setting(inner: str, per_node: int = 4, blocks: int = 4, replicas: int = 2, **local: Any) -> Setting:
    machines = Cluster(ranks=8, nodes=8 // per_node, bandwidth_gbps=8e-6, latency_ms=100.0, node_latency_ms=2.0)
    return Setting(machines, [STAGE] * blocks, LocalRun(**local), replicas, inner, per_node)


def test_what_crosses_by_hand() -> None:
    """Two nodes: a pipeline on each, whose copies meet across; or half of the blocks on each, with all their copies."""
    pipeline, replicas = setting("pipeline"), setting("replicas")
    assert pipeline.nodes == replicas.nodes == 2
    # Every copy sends its slice for the other one, and the sum of its own: as much as the parameters together.
    assert pipeline.crossing_bytes == {"activation": 0, "target": 0, "sync": 4 * 2 * PARAMETERS}
    assert replicas.crossing_bytes == {"activation": 2 * UP, "target": 2 * DOWN, "sync": 0}


def test_rare_meetings_cross_rarely() -> None:
    rare = setting("pipeline", gradients=False, every=10, delay=5)
    assert rare.crossing_bytes["sync"] == pytest.approx(4 * 2 * PARAMETERS / 10)


def test_edges_of_a_node_share_its_link() -> None:
    """1,000 bytes a second: two activations up and two targets down, each way on its own."""
    found = setting("replicas")
    up, down = Edge(Stream.ACTIVATION, 2), Edge(Stream.TARGET, 2, 1)
    assert found.link_of(up) == LinkSpec(0.1, 500.0)
    assert found.link_of(down) == LinkSpec(0.1, 500.0)
    assert found.link_of(Edge(Stream.ACTIVATION, 1)) == LinkSpec(0.002)
    assert found.sending == pytest.approx(2 * UP / 1000)


def test_what_arrives_shares_a_link_too() -> None:
    """Three nodes of two: the middle one takes from both sides, and sends to both."""
    found = setting("replicas", per_node=2, blocks=3)
    assert found.nodes == 3
    load = 2 * UP + 2 * DOWN  # of the middle node, in either direction
    assert found.link_of(Edge(Stream.ACTIVATION, 1)).bandwidth == pytest.approx(1000 * UP / load)
    assert found.link_of(Edge(Stream.TARGET, 2)).bandwidth == pytest.approx(1000 * DOWN / load)
    assert found.sending == pytest.approx(load / 1000)


def test_without_nodes_every_edge_has_a_link_of_its_own() -> None:
    machines = Cluster(ranks=8, bandwidth_gbps=8e-6, latency_ms=100.0)
    found = Setting(machines, [STAGE] * 4, LocalRun(), 2, "replicas", 1)
    assert {found.link_of(edge) for edge in found.topology.edges()} == {LinkSpec(0.1, 1000.0)}
    assert found.sending == pytest.approx(UP / 1000)


def test_memory_of_meetings_by_hand() -> None:
    """Beside the same of one replica: the vector, and for three copies two slices to send and two to receive for each
    of two; with parameters also the outer copy, its momentum, and what was brought."""
    alone = setting("pipeline", replicas=1).memory(2, 2)
    gradients = setting("pipeline", replicas=3).memory(2, 2)
    parameters = setting("pipeline", replicas=3, gradients=False).memory(2, 2)
    assert [more - less for more, less in zip(gradients, alone, strict=True)] == [PARAMETERS + 2 * 4 * 200] * 4
    assert [more - less for more, less in zip(parameters, gradients, strict=True)] == [3 * PARAMETERS] * 4


def test_parts_have_smaller_messages() -> None:
    whole, parts = (setting("pipeline", replicas=1, parts=parts).memory(2, 2) for parts in (1, 4))
    # Three received and two to send, of a quarter each.
    assert [more - less for more, less in zip(whole, parts, strict=True)] == [1500, 3750, 3750, 3750]


def test_a_crowded_link_wants_a_longer_lag() -> None:
    near = Setting(Cluster(ranks=8, nodes=2), [STAGE] * 4, LocalRun(), 2, "replicas", 4).tuned()
    far = Setting(Cluster(ranks=8, nodes=2, latency_ms=6000.0), [STAGE] * 4, LocalRun(), 2, "replicas", 4).tuned()
    assert (near.lag, near.depth) == (2, 2)
    assert far.lag > 2
    assert far.seconds_per_batch == pytest.approx(3.0, rel=0.02)
    assert far.least > 1.1 * far.seconds_per_batch
