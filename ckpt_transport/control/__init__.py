"""Typed messages over ZeroMQ: one mailbox per participant, heartbeats, and a control channel per route."""

from ckpt_transport.control.mailbox import Mailbox
from ckpt_transport.control.messages import Message
from ckpt_transport.control.route import RouteControl

__all__ = ["Mailbox", "Message", "RouteControl"]
