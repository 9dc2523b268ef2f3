"""The one executor: Figure 2 of the paper, as a loop over actions."""

from collections.abc import Iterable, Mapping

from counterflow.checkpoint import CheckpointWriter
from counterflow.engine.stage import Stage
from counterflow.schedule import Action, Op
from counterflow.transport import ChannelError


class BlockError(Exception):
    """A block that cannot go on; the text names rank, block and batch, and the cause is chained."""


def execute(
    program: Iterable[Action], stages: Mapping[int, Stage], archive: CheckpointWriter, rank: int
) -> Iterable[Action]:
    """Run ``program``, and yield every action once it is done; checkpoints go to ``archive``.

    Raises `ChannelError` where a channel ended the run and `BlockError` where a block did.
    """
    for action in program:
        stage = stages[action.block]
        try:
            match action.op:
                case Op.TARGET:
                    stage.target(action.n)
                case Op.FORWARD:
                    stage.forward(action.n)
                case Op.LEARN:
                    stage.learn(action.n)
                case Op.EVALUATE:
                    stage.evaluate(action.n, action.e)
                case Op.BACKWARD:
                    stage.backward(action.n)
                case Op.PREDICT:
                    stage.predict(action.n, action.e)
                case Op.RESEND:
                    stage.resend(action.n)
                case Op.SAVE:
                    archive.save(action.block, action.n + 1, stage.state(action.n))
        except ChannelError:
            raise
        except Exception as error:
            what = action.op.name.lower()
            text = f"rank {rank}: block {action.block}: {what} of batch {action.n}: {type(error).__name__}: {error}"
            raise BlockError(text) from error
        yield action
