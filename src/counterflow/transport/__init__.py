"""Channels: the only part that knows about processes, and that knows nothing of models."""

from counterflow.transport.channel import ChannelError, Payload, Receiver, Sender
from counterflow.transport.frame import Frame, TensorSpec
from counterflow.transport.interface import rendezvous
from counterflow.transport.local import LocalChannel
from counterflow.transport.remote import RemoteReceiver, RemoteSender
from counterflow.transport.world import World, connect

__all__ = [
    "ChannelError",
    "Frame",
    "LocalChannel",
    "Payload",
    "Receiver",
    "RemoteReceiver",
    "RemoteSender",
    "Sender",
    "TensorSpec",
    "World",
    "connect",
    "rendezvous",
]
