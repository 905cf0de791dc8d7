"""Transports: the interface, the four kinds of them as base classes for authors, and the registry of plugins.

=================== =============================== ==========================================================
base class          you write                       for libraries where ...
=================== =============================== ==========================================================
CollectiveEndpoint  ``_broadcast``                  all members call the same broadcast (NCCL, Gloo)
OneSidedEndpoint    ``_describe``, ``_read``        a receiver reads the sender's memory (RDMA, process_vm_readv)
MessageEndpoint     ``_send_to``, ``_receive_from`` sends are matched with receives (UCX tags, sockets)
MappedEndpoint      ``_describe``, ``_map``         a receiver sees the sender's memory (shared memory, CUDA IPC)
=================== =============================== ==========================================================

:class:`Calls` is for libraries that block. Planner and executor import only :mod:`ckpt_transport.transports.interface`.
"""

from ckpt_transport.transports.calls import Calls
from ckpt_transport.transports.collective import CollectiveEndpoint
from ckpt_transport.transports.mapped import MappedEndpoint
from ckpt_transport.transports.message import MessageEndpoint
from ckpt_transport.transports.one_sided import OneSidedEndpoint, ReadSpan
from ckpt_transport.transports.polled import Poll

__all__ = [
    "Calls",
    "CollectiveEndpoint",
    "MappedEndpoint",
    "MessageEndpoint",
    "OneSidedEndpoint",
    "Poll",
    "ReadSpan",
]
