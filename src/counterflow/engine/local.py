"""The engine of local rules: nobody waits for a global backward pass.

Every block runs the same program, Figure 2 of arXiv 2305.14974 with targets that leave ``D_k = lag * (k - 1)`` batches
ahead (`counterflow.schedule.local_schedule`)::

    for n in range(batches):
        T   b_k(n + D_k) from above; b_{k-1}(n + D_k) = g_k(b_k(n + D_k); phi_k) down     Stage.target
        F   a_{k-1}(n) from below;   a_k(n) = f_k(a_{k-1}(n); theta_k) up                 Stage.forward
        L   local losses at z_k and z_{k-1} -> update theta_k and phi_k                   Stage.learn

A block only takes the next message of a named channel, so neither timing nor placement changes the result.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import perf_counter

from torch import nn

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import LocalRule, RuleSet
from counterflow.engine import cost
from counterflow.engine.channels import ChannelFactory
from counterflow.engine.cost import Flops
from counterflow.engine.evaluation import ActivationRecorder
from counterflow.engine.job import Job
from counterflow.engine.run_context import (
    BlockError,
    RankResult,
    RunContext,
    WaitTimes,
    count_parameters,
    raise_if_preempted,
    restore_block,
)
from counterflow.engine.stage import Stage
from counterflow.metrics.callback import CallbackError
from counterflow.metrics.provenance import digest
from counterflow.schedule import Action, Op, rank_program
from counterflow.trace.recorder import span
from counterflow.transport import ChannelError

_SPANS = {op: op.name.lower() for op in Op} | {Op.BACKWARD: "learn", Op.SAVE: "checkpoint"}
"""Name of the span of every action."""


def execute(program: Iterable[Action], stages: Mapping[int, Stage], context: RunContext) -> Iterable[Action]:
    """Run ``program``, and yield every action once it is done.

    Raises:
        ChannelError: A channel ended the run.
        BlockError: A block ended the run.
        CallbackError: A callback of rank 0 ended the run.
    """
    for action in program:
        stage, n, e = stages[action.block], action.n, action.e
        try:
            with span(context.recorder, _SPANS[action.op], action.block, n, action.part):
                match action.op:
                    case Op.TARGET:
                        stage.target(n)
                    case Op.FORWARD:
                        stage.forward(BatchPart(n, e, action.parts))
                    case Op.LEARN:
                        stage.learn(BatchPart(n, e, action.parts))
                    case Op.EVALUATE:
                        stage.evaluate(n, e)
                    case Op.BACKWARD:
                        stage.backward(n)
                    case Op.PREDICT:
                        stage.predict(n, e)
                    case Op.RESEND:
                        stage.resend(n)
                    case Op.SAVE:
                        context.checkpoints.save(action.block, n + 1, stage.state(n))
        except (ChannelError, CallbackError):
            raise
        except Exception as error:
            what = f"rank {context.comm.rank}: block {action.block}: {action.op.name.lower()} of batch {n}"
            raise BlockError(f"{what}: {type(error).__name__}: {error}") from error
        yield action


def run(job: Job, rules: RuleSet, context: RunContext) -> RankResult:
    """Train this rank's blocks to the end.

    Raises:
        ChannelError, BlockError, CallbackError: The process should end.
        PreemptedError: A signal ended the run after a checkpoint.
    """
    comm, waits = context.comm, context.waits
    blocks = job.topology.blocks_of(comm.rank)
    comm.open_edges(job.topology, job.backend, job.device)
    factory = ChannelFactory(job, rules, comm)
    if 1 in blocks:
        job.initialize_inputs()
    pairs = {block: rules.rule(block) for block in blocks}
    costs = (
        cost.end_to_end(job, block) if job.plan.gradients_from else cost.local(rules, block, rule, job)
        for block, rule in pairs.items()
    )
    flops = sum(costs, Flops(0, 0, 0))
    exits = {block: cost.prediction(rules, block, rule, job) for block, rule in pairs.items()}
    for rule in pairs.values():
        job.runtime.prepare_module(rule, rule.inference_modules)
    recorders = {block: ActivationRecorder(job.activations, job.plan) for block in blocks}
    stages = {
        block: Stage(block, rule, factory.channels(block), job, context, recorders[block])
        for block, rule in pairs.items()
    }
    for block, stage in stages.items():
        restore_block(context, block, stage.restore)
    comm.keep_replay_from(lambda batches, edge: next(replace(job.plan, start=batches).messages(edge), None))
    comm.stop.start(job.plan.start)

    steady = job.plan.first_steady(job.topology.blocks)
    start, before, timed_from, last = perf_counter(), WaitTimes(), job.plan.start, 0
    program = rank_program(blocks, job.plan, comm.stop.should_stop_after)
    for action in execute(program, stages, context):
        if action.completes and action.block == blocks[-1]:
            last = action.n
            if last == steady - 1:
                start, before, timed_from = perf_counter(), replace(waits), steady
    raise_if_preempted(context, job.plan)
    seconds = perf_counter() - start

    effective = sum(count_parameters(rule.inference_modules) for rule in pairs.values())
    digests = {block: digest(rule) for block, rule in pairs.items()}
    for stage in stages.values():
        if stage.average is not None:
            stage.average.swap()
    result = RankResult(
        digests=digests,
        modules={block: rule.inference_modules[0] for block, rule in pairs.items()},
        readouts={block: _readouts(rule) for block, rule in pairs.items()},
        effective_parameters=effective,
        affiliated_parameters=count_parameters(pairs.values()) - effective,
        seconds=seconds,
        batches=last + 1 - timed_from,
        last=last,
        receive_wait=waits.receive - before.receive,
        send_wait=waits.send - before.send,
        flops=flops,
        exits=exits,
        activations={block: kept for block, of in recorders.items() if (kept := of.take()) is not None},
    )
    for stage in stages.values():
        stage.close()
    return result


def _readouts(rule: LocalRule) -> nn.ModuleDict:
    modules = {"readout": rule.readout_module(), "decoder": rule.decoder_module()}
    return nn.ModuleDict({name: module for name, module in modules.items() if module is not None})
