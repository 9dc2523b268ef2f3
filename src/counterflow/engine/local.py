"""The free engine: one rank's part of a run of local rules, in which nobody waits for a global backward pass."""

from collections.abc import Iterable
from dataclasses import replace
from time import perf_counter

import torch

from counterflow.algorithms import RuleSet
from counterflow.algorithms.rule import LocalRule
from counterflow.engine import cost as costs
from counterflow.engine.activation_recorder import ActivationRecorder
from counterflow.engine.channels import ChannelFactory
from counterflow.engine.cost import Flops
from counterflow.engine.execute import execute
from counterflow.engine.job import Job
from counterflow.engine.rank_result import RankResult, count
from counterflow.engine.run_context import RunContext, check_halt, restore
from counterflow.engine.stage import Stage, WaitTimes
from counterflow.metrics.fingerprint import digest
from counterflow.schedule import Action, Op, rank_program
from counterflow.trace.recorder import Recorder

_SPANS = {op: op.name.lower() for op in Op} | {Op.BACKWARD: "learn", Op.SAVE: "checkpoint"}
"""What the span of an action is called."""


def run(job: Job, column: RuleSet, context: RunContext) -> RankResult:
    """Train this rank's blocks to the end.

    Raises `ChannelError` or `BlockError`, after which the process should end, and `PreemptedError`.
    """
    comm, waits = context.comm, context.waits
    blocks = job.topology.blocks_of(comm.rank)
    comm.open_edges(job.topology, job.backend, job.device)
    channels = ChannelFactory(job, column, comm)
    rules = {block: column.rule(block) for block in blocks}
    cost = sum((_cost(job, column, block, rule) for block, rule in rules.items()), Flops(0, 0, 0))
    for rule in rules.values():
        job.numerics.prepare_module(rule, rule.inference_modules)
    recorders = {block: ActivationRecorder(job.config.run.activations, job.plan) for block in blocks}
    stages = {
        block: Stage(
            block,
            rules[block],
            channels.ports(block),
            job.plan,
            job.config.seed,
            job.numerics,
            context.callback,
            waits,
            recorders[block],
            context.recorder,
        )
        for block in blocks
    }
    for block, stage in stages.items():
        restore(context, block, stage.restore)
    comm.keep_replay_from(lambda batches, edge: next(replace(job.plan, start=batches).messages(edge), None))
    comm.stop.start(job.plan.start)
    steady = job.plan.first_steady(job.topology.blocks)
    start, before = perf_counter(), WaitTimes()
    program = rank_program(blocks, job.plan, comm.stop.should_stop_after)
    actions = execute(program, stages, context.archive, comm.rank)
    for action in actions if context.recorder is None else _recorded(actions, context.recorder):
        if action.op in (Op.LEARN, Op.BACKWARD) and action.block == blocks[-1] and action.n == steady - 1:
            start, before = perf_counter(), replace(waits)
    check_halt(context, job.plan.batches)
    seconds = perf_counter() - start
    inference_modules = sum(count(rule.inference_modules) for rule in rules.values())
    result = RankResult(
        digests={block: digest(rule) for block, rule in rules.items()},
        effective_parameters=inference_modules,
        affiliated_parameters=count(rules.values()) - inference_modules,
        seconds=seconds,
        batches=job.plan.batches - steady,
        receive_wait=waits.receive - before.receive,
        send_wait=waits.send - before.send,
        cost=cost,
        activations={block: kept for block, of in recorders.items() if (kept := of.take()) is not None},
    )
    for stage in stages.values():
        stage.close()
    return result


def _recorded(actions: Iterable[Action], recorder: Recorder) -> Iterable[Action]:
    """``actions``, each of which is done when it comes, with a span for each."""
    start = perf_counter()
    for action in actions:
        end, name = perf_counter(), _SPANS[action.op]
        recorder.add(name, action.block, action.n, start, end, action.e if name in ("evaluate", "predict") else -1)
        yield action
        start = perf_counter()


def _cost(job: Job, column: RuleSet, block: int, rule: LocalRule) -> Flops:
    if not job.plan.gradients_from:
        return costs.local(column, block, rule, job)
    if block == 1:
        return costs.backprop(rule.inference_modules[0], costs.inputs(job), bottom=True)
    (shape, _), *_ = column.activation(block - 1, costs.SAMPLES)
    return costs.backprop(rule.inference_modules[0], torch.randn(shape), bottom=False)
