"""The one executor: Figure 2 of the paper, as a loop over actions."""

from collections.abc import Iterable, Mapping

from counterflow.checkpoint import CheckpointWriter
from counterflow.engine.station import Station
from counterflow.schedule import Action, Op
from counterflow.transport import ChannelError


class RunError(Exception):
    """A block that cannot go on; the text names rank, block and batch, and the cause is chained."""


def execute(
    program: Iterable[Action], stations: Mapping[int, Station], archive: CheckpointWriter, rank: int
) -> Iterable[Action]:
    """Run ``program``, and yield every action once it is done; checkpoints go to ``archive``.

    Raises `ChannelError` where a channel ended the run and `RunError` where a block did.
    """
    for action in program:
        station = stations[action.block]
        try:
            match action.op:
                case Op.TARGET:
                    station.target(action.n)
                case Op.FORWARD:
                    station.forward(action.n)
                case Op.LEARN:
                    station.learn(action.n)
                case Op.EVALUATE:
                    station.evaluate(action.n, action.e)
                case Op.BACKWARD:
                    station.backward(action.n)
                case Op.PREDICT:
                    station.predict(action.n, action.e)
                case Op.RESEND:
                    station.resend(action.n)
                case Op.SAVE:
                    archive.save(action.block, action.n + 1, station.state(action.n))
        except ChannelError:
            raise
        except Exception as error:
            what = action.op.name.lower()
            text = f"rank {rank}: block {action.block}: {what} of batch {action.n}: {type(error).__name__}: {error}"
            raise RunError(text) from error
        yield action
