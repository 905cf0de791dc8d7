"""The four kinds of transport, as base classes for authors.

=================== =============================== ==========================================================
base class          you write                       for libraries where ...
=================== =============================== ==========================================================
CollectiveEndpoint  ``_broadcast``                  all members call the same broadcast (NCCL, Gloo)
OneSidedEndpoint    ``_describe``, ``_read``        a receiver reads the sender's memory (RDMA, process_vm_readv)
MessageEndpoint     ``_send_to``, ``_receive_from`` sends are matched with receives (UCX tags, sockets)
MappedEndpoint      ``_describe``, ``_map``         a receiver sees the sender's memory (shared memory, CUDA IPC)
=================== =============================== ==========================================================

:class:`Calls` is for libraries that block. Planner and executor never import this package.
"""

from ckpt_transport.families.calls import Calls
from ckpt_transport.families.collective import CollectiveEndpoint
from ckpt_transport.families.mapped import MappedEndpoint
from ckpt_transport.families.message import MessageEndpoint
from ckpt_transport.families.one_sided import OneSidedEndpoint, ReadSpan
from ckpt_transport.families.polled import Poll

__all__ = ["Calls", "CollectiveEndpoint", "MappedEndpoint", "MessageEndpoint", "OneSidedEndpoint", "Poll", "ReadSpan"]
