"""What both ends of an edge between processes share, whatever carries it."""

from collections.abc import Callable
from dataclasses import dataclass

from counterflow.message import Tag
from counterflow.topology import Edge
from counterflow.transport.buffers import MessageBuffers
from counterflow.transport.channel import ChannelError, Payload, Watchdog
from counterflow.transport.message_layout import MessageLayout


@dataclass(frozen=True)
class Endpoint:
    edge: Edge
    rank: int
    """This process."""
    peer: int
    """The process at the other end."""
    layouts: Callable[[Tag], MessageLayout]
    medium: MessageBuffers
    watch: Watchdog

    def layout(self, tag: Tag, tensors: Payload) -> MessageLayout:
        """The layout of message ``tag``. Raises ``ValueError`` for tensors not agreed on."""
        layout = self.layouts(tag)
        try:
            layout.check(tensors)
        except ValueError as error:
            raise ValueError(f"rank {self.rank}: {self.edge}: {tag}: {error}") from None
        return layout

    def sending(self, what: object) -> str:
        """What this end, which sends, waits for."""
        return f"rank {self.rank}: {self.edge} to rank {self.peer}: {what}"

    def receiving(self, what: object) -> str:
        """What this end, which receives, waits for."""
        return f"rank {self.rank}: {self.edge} from rank {self.peer}: {what}"

    def error(self, tag: Tag, why: str) -> ChannelError:
        return ChannelError(f"rank {self.rank}: {self.edge} with rank {self.peer}: {tag}: {why}")
