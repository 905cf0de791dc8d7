"""Participants exchange typed messages over ZeroMQ: each has a mailbox, a heartbeat, and a channel for each route."""

from ckpt_transport.control.mailbox import Mailbox
from ckpt_transport.control.messages import Message
from ckpt_transport.control.route import RouteControl

__all__ = ["Mailbox", "Message", "RouteControl"]
