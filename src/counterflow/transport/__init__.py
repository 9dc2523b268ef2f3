"""Channels between blocks, inside a process and between processes; models and rules are unknown here."""

from counterflow.transport.buffers import MessageLayout, TensorSpec
from counterflow.transport.channel import ChannelError, LocalChannel, Payload, Receiver, Sender
from counterflow.transport.communicator import Communicator, connect
from counterflow.transport.remote import RemoteReceiver, RemoteSender
from counterflow.transport.rendezvous import rendezvous

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
