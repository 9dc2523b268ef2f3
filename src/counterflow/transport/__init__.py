"""Channels: the only part that knows about processes, and that knows nothing of models."""

from counterflow.transport.channel import ChannelError, Payload, Receiver, Sender
from counterflow.transport.communicator import Communicator, connect
from counterflow.transport.interface import rendezvous
from counterflow.transport.local_channel import LocalChannel
from counterflow.transport.message_layout import MessageLayout, TensorSpec
from counterflow.transport.remote import RemoteReceiver, RemoteSender

__all__ = [
    "ChannelError",
    "Communicator",
    "LocalChannel",
    "MessageLayout",
    "Payload",
    "Receiver",
    "RemoteReceiver",
    "RemoteSender",
    "Sender",
    "TensorSpec",
    "connect",
    "rendezvous",
]
