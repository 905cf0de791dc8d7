"""These live longer than an update: :class:`ParameterServer` brings versions, :class:`Sink` takes them into an engine.

:class:`Holder` keeps a version for engines that come later, and :class:`Joiner` brings them to it.
"""

from ckpt_transport.service.address_file import AddressFile, HolderAddress
from ckpt_transport.service.awaited_job import AwaitedJob
from ckpt_transport.service.holder import Holder
from ckpt_transport.service.joiner import Joiner
from ckpt_transport.service.parameter_server import ParameterServer
from ckpt_transport.service.query import ask_version
from ckpt_transport.service.sink import Sink
from ckpt_transport.service.staged_job import StagedJob

__all__ = [
    "AddressFile",
    "AwaitedJob",
    "Holder",
    "HolderAddress",
    "Joiner",
    "ParameterServer",
    "Sink",
    "StagedJob",
    "ask_version",
]
