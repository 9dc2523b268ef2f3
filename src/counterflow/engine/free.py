"""The free engine: one rank's part of a run of local rules, in which nobody waits for a global backward pass."""

from collections.abc import Iterable
from dataclasses import replace
from time import perf_counter

import torch

from counterflow.algorithms import RuleSet
from counterflow.algorithms.rule import LocalRule
from counterflow.engine import cost as costs
from counterflow.engine.channels import Channels
from counterflow.engine.cost import Cost
from counterflow.engine.execute import execute
from counterflow.engine.job import Job
from counterflow.engine.outcome import Outcome, count
from counterflow.engine.session import Session, check_halt, restore
from counterflow.engine.specimens import Specimens
from counterflow.engine.station import Station, Waits
from counterflow.metrics.fingerprint import digest
from counterflow.schedule import Action, Op, rank_program
from counterflow.trace.recorder import Recorder

_SPANS = {op: op.name.lower() for op in Op} | {Op.BACKWARD: "learn", Op.SAVE: "checkpoint"}
"""What the span of an action is called."""


def run(job: Job, column: RuleSet, session: Session) -> Outcome:
    """Train this rank's blocks to the end.

    Raises `ChannelError` or `RunError`, after which the process should end, and `StoppedError`.
    """
    comm, waits = session.comm, session.waits
    blocks = job.topology.blocks_of(comm.rank)
    comm.open_edges(job.topology, job.backend, job.device)
    channels = Channels(job, column, comm)
    rules = {block: column.rule(block) for block in blocks}
    cost = sum((_cost(job, column, block, rule) for block, rule in rules.items()), Cost(0, 0, 0))
    for rule in rules.values():
        job.numerics.place(rule, rule.inference_modules)
    specimens = {block: Specimens(job.config.run.activations, job.plan) for block in blocks}
    stations = {
        block: Station(
            block,
            rules[block],
            channels.ports(block),
            job.plan,
            job.config.seed,
            job.numerics,
            session.callback,
            waits,
            specimens[block],
            session.recorder,
        )
        for block in blocks
    }
    for block, station in stations.items():
        restore(session, block, station.restore)
    comm.restarts_at(lambda batches, edge: next(replace(job.plan, start=batches).messages(edge), None))
    comm.stop.start(job.plan.start)
    steady = job.plan.first_steady(job.topology.blocks)
    start, before = perf_counter(), Waits()
    program = rank_program(blocks, job.plan, comm.stop.should_stop_after)
    actions = execute(program, stations, session.archive, comm.rank)
    for action in actions if session.recorder is None else _recorded(actions, session.recorder):
        if action.op in (Op.LEARN, Op.BACKWARD) and action.block == blocks[-1] and action.n == steady - 1:
            start, before = perf_counter(), replace(waits)
    check_halt(session, job.plan.batches)
    seconds = perf_counter() - start
    inference_modules = sum(count(rule.inference_modules) for rule in rules.values())
    outcome = Outcome(
        digests={block: digest(rule) for block, rule in rules.items()},
        effective_parameters=inference_modules,
        affiliated_parameters=count(rules.values()) - inference_modules,
        seconds=seconds,
        batches=job.plan.batches - steady,
        receive_wait=waits.receive - before.receive,
        send_wait=waits.send - before.send,
        cost=cost,
        activations={block: kept for block, of in specimens.items() if (kept := of.take()) is not None},
    )
    for station in stations.values():
        station.close()
    return outcome


def _recorded(actions: Iterable[Action], recorder: Recorder) -> Iterable[Action]:
    """``actions``, each of which is done when it comes, with a span for each."""
    start = perf_counter()
    for action in actions:
        end, name = perf_counter(), _SPANS[action.op]
        recorder.add(name, action.block, action.n, start, end, action.e if name in ("evaluate", "predict") else -1)
        yield action
        start = perf_counter()


def _cost(job: Job, column: RuleSet, block: int, rule: LocalRule) -> Cost:
    if not job.plan.gradients_from:
        return costs.local(column, block, rule, job)
    if block == 1:
        return costs.backprop(rule.inference_modules[0], costs.inputs(job), bottom=True)
    (shape, _), *_ = column.activation(block - 1, costs.SAMPLES)
    return costs.backprop(rule.inference_modules[0], torch.randn(shape), bottom=False)
