"""The engine of local rules: nobody waits for a global backward pass.

Every block runs the same program, Figure 2 of arXiv 2305.14974 with targets that leave ``D_k = lag * (k - 1)`` batches
ahead (`counterflow.schedule.local_schedule`)::

    for n in range(batches):
        T   b_k(n + D_k) from above; b_{k-1}(n + D_k) = g_k(b_k(n + D_k); phi_k) down     Stage.target
        F   a_{k-1}(n) from below;   a_k(n) = f_k(a_{k-1}(n); theta_k) up                 Stage.forward
        L   local losses at z_k and z_{k-1} -> update theta_k and phi_k                   Stage.learn

A block only takes the next message of a named channel, so neither timing nor placement changes the result.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from torch import nn

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import LocalRule, RuleSet
from counterflow.engine import cost
from counterflow.engine.channels import ChannelFactory
from counterflow.engine.cost import Flops
from counterflow.engine.evaluation import ActivationRecorder
from counterflow.engine.job import Job
from counterflow.engine.replica_sync import replica_sync
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
from counterflow.topology import Piece
from counterflow.trace.recorder import span
from counterflow.transport import ChannelError

_SPANS = {op: op.name.lower() for op in Op} | {Op.BACKWARD: "learn", Op.SAVE: "checkpoint"}
"""Name of the span of every action."""


def execute(program: Iterable[Action], stages: Mapping[Piece, Stage], context: RunContext) -> Iterable[Action]:
    """Run ``program``, and yield every action once it is done.

    Raises:
        ChannelError: A channel ended the run.
        BlockError: A block ended the run.
        CallbackError: A callback of rank 0 ended the run.
    """
    for action in program:
        piece, n, e = Piece(action.block, action.replica), action.n, action.e
        stage = stages[piece]
        try:
            with span(context.recorder, _SPANS[action.op], stage.number, n, action.part):
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
                    case Op.SCATTER:
                        stage.scatter(n)
                    case Op.REDUCE:
                        stage.reduce(n)
                    case Op.GATHER:
                        stage.gather(n)
                    case Op.SAVE:
                        context.checkpoints.save(stage.number, n + 1, stage.state(n))
        except (ChannelError, CallbackError):
            raise
        except Exception as error:
            what = f"rank {context.comm.rank}: {piece}: {action.op.name.lower()} of batch {n}"
            raise BlockError(f"{what}: {type(error).__name__}: {error}") from error
        yield action


def run(job: Job, make_rules: Callable[[Job], RuleSet], context: RunContext) -> RankResult:
    """Train this rank's pieces to the end; ``make_rules`` gives the rules of a replica from its view of the job.

    Raises:
        ChannelError, BlockError, CallbackError: The process should end.
        PreemptedError: A signal ended the run after a checkpoint.
    """
    comm, waits = context.comm, context.waits
    pieces = job.topology.pieces_of(comm.rank)
    comm.open_edges(job.topology, job.backend, job.device)
    if 1 in {block for block, _ in pieces}:
        job.initialize_inputs()
    first, *others = sorted({replica for _, replica in pieces})
    views = {replica: job.of_replica(replica, copied=replica in others) for replica in (*others, first)}
    rule_sets = {replica: make_rules(view) for replica, view in views.items()}
    pairs = {piece: rule_sets[piece.replica].rule(piece.block) for piece in pieces}
    reported = {block: rule for (block, replica), rule in pairs.items() if replica == 0}
    rules = rule_sets[first]
    costs = (
        cost.end_to_end(job, block) if job.plan.gradients_from else cost.local(rules, block, rule, job)
        for block, rule in reported.items()
    )
    flops = sum(costs, Flops(0, 0, 0))
    exits = {block: cost.prediction(rules, block, rule, job) for block, rule in reported.items()}
    for rule in pairs.values():
        job.runtime.prepare_module(rule, rule.inference_modules)
    factory = ChannelFactory(job, rules, comm)
    recorders = {
        piece: ActivationRecorder(job.activations, job.test_samples, views[piece.replica].plan) for piece in pieces
    }
    stages = {}
    for piece, rule in pairs.items():
        view, several = views[piece.replica], job.topology.replicas
        sync = replica_sync(rule, piece.replica, several, job.sync) if several > 1 else None
        channels = factory.channels(view, piece.block, sync)
        stages[piece] = Stage(piece.block, rule, channels, view, context, recorders[piece], sync)
    for (block, _), stage in stages.items():
        restore_block(context, stage.number, block, stage.restore)
    comm.keep_replay_from(lambda batches, edge: next(replace(job.plan, start=batches).messages(edge), None))
    comm.stop.start(job.plan.start)

    steady = job.plan.first_steady(job.topology.blocks)
    start, before, timed_from, last = job.runtime.now(), WaitTimes(), job.plan.start, 0
    program = rank_program(pieces, job.plan, comm.stop.should_stop_after)
    for action in execute(program, stages, context):
        if action.completes and (action.block, action.replica) == pieces[-1]:
            last = action.n
            if last == steady - 1:
                start, before, timed_from = job.runtime.now(), replace(waits), steady
    raise_if_preempted(context, job.plan)
    seconds = job.runtime.now() - start

    for stage in stages.values():
        if stage.sync is not None:
            stage.sync.finish()
    effective = sum(count_parameters(rule.inference_modules) for rule in reported.values())
    digests = {piece: digest(rule) for piece, rule in pairs.items()}
    for stage in stages.values():
        if stage.average is not None:
            stage.average.swap()
    result = RankResult(
        digests=digests,
        modules={block: rule.inference_modules[0] for block, rule in reported.items()},
        readouts={block: _readouts(rule) for block, rule in reported.items()},
        effective_parameters=effective,
        affiliated_parameters=count_parameters(reported.values()) - effective,
        seconds=seconds,
        batches=last + 1 - timed_from,
        last=last,
        receive_wait=waits.receive - before.receive,
        send_wait=waits.send - before.send,
        flops=flops,
        exits=exits,
        activations={block: kept for (block, _), of in recorders.items() if (kept := of.take()) is not None},
    )
    for stage in stages.values():
        stage.close()
    return result


def _readouts(rule: LocalRule) -> nn.ModuleDict:
    modules = {"readout": rule.readout_module(), "decoder": rule.decoder_module()}
    return nn.ModuleDict({name: module for name, module in modules.items() if module is not None})
