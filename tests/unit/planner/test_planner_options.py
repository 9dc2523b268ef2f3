"""Options of a plan, and their limits."""

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from counterflow.cli.hydra_app import conf_dir, load_config, validate
from counterflow.measured_links import MeasuredLink, write_links
from counterflow.planner.options import Cluster, PlanConfig


def options(*overrides: str) -> PlanConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(hydra.compose("plan", list(overrides)), PlanConfig)


def test_the_run_that_is_planned_is_the_one_of_the_other_program() -> None:
    overrides = ("model=cnn", "train.batch_size=64", "optimizer=sgd", "engine.lag=3")
    planned, trained = options(*overrides).training(1), load_config(list(overrides))
    assert (planned.algorithm, planned.model, planned.data) == (trained.algorithm, trained.model, trained.data)
    assert (planned.train, planned.optimizer) == (trained.train, trained.optimizer)
    assert (planned.engine.lag, planned.engine.threads) == (3, 1)


def test_machines_in_seconds_and_bytes() -> None:
    found = options(
        "machines.ranks=8",
        "machines.bandwidth_gbps=1",
        "machines.latency_ms=10",
        "machines.memory_gb=2",
        "machines.overhead_ms=0.5",
    ).machines
    assert (found.ranks, found.memory, found.overhead) == (8, 2e9, 0.0005)
    assert (found.link.bandwidth, found.link.latency) == (125e6, 0.01)
    assert found.jitter(4, 10) is None


def test_slow_batches_come_to_all_blocks_alike_and_are_the_same_for_part_of_them() -> None:
    machines = Cluster(ranks=4, jitter_share=0.25, jitter_factor=3.0)
    whole, upper = machines.jitter(4, 400), machines.jitter(4, 400, first=2)
    assert whole is not None
    assert upper is not None
    slow = [sum(whole(block, n) == 3.0 for n in range(400)) for block in range(1, 5)]
    assert 80 <= sum(slow) <= 120
    assert max(slow) - min(slow) <= 1
    assert all(upper(block, n) == whole(block + 2, n) for block in (1, 2) for n in range(400))
    assert {whole(1, n) for n in range(400)} == {1.0, 3.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("machines.ranks=0", "machines.ranks=0: must be at least 1 and at most 1048576"),
        ("machines.speed=0", "machines.speed=0.0: must be greater than 0"),
        ("machines.memory_gb=-1", "machines.memory_gb=-1.0: must be greater than 0"),
        ("machines.bandwidth_gbps=nan", "machines.bandwidth_gbps=nan: must be greater than 0"),
        ("machines.latency_ms=-1", "machines.latency_ms=-1.0: must be at least 0 and at most 1e+06"),
        ("machines.overhead_ms=inf", "machines.overhead_ms=inf: must be at least 0 and at most 1e+06"),
        ("machines.jitter_share=1", "machines.jitter_share=1.0: must be at least 0 and below 1"),
        ("machines.jitter_factor=0.5", "machines.jitter_factor=0.5: must be at least 1 and at most 1e+06"),
        ("machines.nodes=3", "machines.nodes=3: must divide machines.ranks=4"),
        ("machines.node_latency_ms=1", "machines.node_latency_ms=1: has no effect without machines.nodes"),
        ("plan.coarsest_wire=fp8", "plan.coarsest_wire=fp8: allowed are fp32, bf16, int8"),
        ("topology.inner=replicas", "topology.inner=replicas: is what the plan finds, allowed is pipeline"),
        ("blocks=8", "blocks=8: is what the plan finds, allowed is 1; machines.ranks= bounds it"),
        ("model.cut=profile", "model.cut=profile: is what the plan finds, allowed is flops"),
        ("engine.lag=exact", "engine.lag=exact: runs on one process, allowed are whole numbers of at least 1"),
        ("engine.target_depth=4", "engine.target_depth=4: is the lag of a plan, allowed is null"),
        ("algorithm=bp", "algorithm=bp: allowed are custom, al, bll, predsim"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        options(override)
    assert str(error.value) == message


def test_wires_from_the_one_of_the_run_to_the_coarsest() -> None:
    assert options().wires == ("fp32", "bf16", "int8")
    assert options("engine.wire=bf16").wires == ("bf16", "int8")
    assert options("plan.coarsest_wire=fp32").wires == ("fp32",)
    with pytest.raises(ValueError, match=r"plan.coarsest_wire=bf16: must not be more exact than engine.wire=int8"):
        options("engine.wire=int8", "plan.coarsest_wire=bf16")


def test_every_replica_has_a_process() -> None:
    with pytest.raises(ValueError, match=r"machines.ranks=2: must be at least replicas=4"):
        options("replicas=4", "train.batch_size=64", "machines.ranks=2")


@pytest.mark.parametrize(("processes", "each"), [(1, 1), (4, 4), (5, None), (6, 3), (7, None), (8, 4), (9, 3), (12, 4)])
def test_processes_on_the_fewest_nodes(processes: int, each: int | None) -> None:
    assert Cluster(ranks=12, nodes=3).processes_per_node(processes) == each
    assert Cluster(ranks=12).processes_per_node(processes) == 1


def links_file(folder: Path, *edges: tuple[int, int, float, float]) -> str:
    """A file of links between ranks 0, 1, 2, ..: nodes, latency and bandwidth of each."""
    path = folder / "links.json"
    write_links(
        path,
        [
            MeasuredLink(
                source=i, destination=i + 1, source_node=a, destination_node=b, latency=latency, bandwidth=bandwidth
            )
            for i, (a, b, latency, bandwidth) in enumerate(edges)
        ],
    )
    return str(path)


def test_measured_links_are_those_of_the_machines(tmp_path: Path) -> None:
    """The slowest link of each kind, and the number of nodes."""
    path = links_file(tmp_path, (0, 0, 1e-4, 4e9), (0, 1, 0.02, 5e6), (1, 1, 2e-4, 3e9), (1, 2, 0.01, 2.5e6))
    found = Cluster(ranks=6, links=path).with_measured_links()
    assert (found.nodes, found.links) == (3, None)
    assert (found.link.latency, found.link.bandwidth) == (pytest.approx(0.02), pytest.approx(2.5e6))
    assert (found.node_link.latency, found.node_link.bandwidth) == (pytest.approx(2e-4), pytest.approx(3e9))


def test_links_within_a_node_that_were_not_measured_take_no_time(tmp_path: Path) -> None:
    found = Cluster(ranks=4, links=links_file(tmp_path, (0, 1, 0.02, 5e6))).with_measured_links()
    assert (found.nodes, found.node_link.latency, found.node_link.bandwidth) == (2, 0, float("inf"))


def test_measured_links_that_do_not_go_with_the_rest(tmp_path: Path) -> None:
    path = links_file(tmp_path, (0, 1, 0.02, 5e6))
    with pytest.raises(ValueError, match=r"machines.latency_ms=5: is what machines.links has"):
        Cluster(latency_ms=5.0, links=path)
    with pytest.raises(ValueError, match=r"machines.nodes=2: must divide machines.ranks=5"):
        Cluster(ranks=5, links=path).with_measured_links()
    with pytest.raises(ValueError, match=r"machines.links=.*gone: must be a file of links"):
        Cluster(links=str(tmp_path / "gone")).with_measured_links()
