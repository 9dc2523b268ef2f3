"""The free engine: one rank's part of a run of local rules, in which nobody waits for a global backward pass."""

from dataclasses import replace
from time import perf_counter

from counterflow.algorithms import Column
from counterflow.engine.channels import Channels
from counterflow.engine.execute import execute
from counterflow.engine.job import Job
from counterflow.engine.outcome import Outcome, count
from counterflow.engine.station import Observer, Station, Waits
from counterflow.metrics.fingerprint import digest
from counterflow.schedule import Op, rank_program
from counterflow.transport import World


def run(job: Job, column: Column, world: World, observer: Observer, waits: Waits) -> Outcome:
    """Train this rank's blocks to the end. Raises `ChannelError` or `RunError`, after which the process should end."""
    blocks = job.topology.blocks_of(world.rank)
    world.open_edges(job.topology, job.backend, job.device)
    channels = Channels(job, column, world)
    stations = {
        block: Station(
            block,
            column.rule(block).to(job.device),
            channels.ports(block),
            job.plan,
            job.config.seed,
            job.device,
            observer,
            waits,
        )
        for block in blocks
    }
    steady = min(job.topology.blocks, job.plan.batches // 2)
    start, before = perf_counter(), Waits()
    for action in execute(rank_program(blocks, job.plan), stations, world.rank):
        if action.op in (Op.LEARN, Op.BACKWARD) and action.block == blocks[-1] and action.n == steady - 1:
            start, before = perf_counter(), replace(waits)
    seconds = perf_counter() - start
    rules = [station.rule for station in stations.values()]
    effective = sum(count(rule.effective) for rule in rules)
    outcome = Outcome(
        digests={block: digest(station.rule) for block, station in stations.items()},
        effective_parameters=effective,
        affiliated_parameters=count(rules) - effective,
        seconds=seconds,
        batches=job.plan.batches - steady,
        receive_wait=waits.receive - before.receive,
        send_wait=waits.send - before.send,
    )
    for station in stations.values():
        station.close()
    return outcome
