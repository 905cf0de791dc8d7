"""Any ``torch.nn.Module`` becomes updatable from another process: see :func:`attach`."""

from ckpt_transport_torch.attach import Attachment, attach
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import Loader

__all__ = ["Attachment", "Loader", "TorchEngine", "attach"]
