"""This adapter makes any ``torch.nn.Module`` updatable from another process: see :func:`attach`."""

from ckpt_transport.spi import Loader
from ckpt_transport_torch.attach import Attachment, attach, attach_engine
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from ckpt_transport_torch.module_engine import ModuleEngine

__all__ = ["Attachment", "Loader", "LoaderEngine", "ModuleEngine", "TorchEngine", "attach", "attach_engine"]
