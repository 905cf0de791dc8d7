"""Where a source keeps the weights it sends: versions, read from files or copied from tensors into reused memory."""

from ckpt_transport.store.digests import with_digests
from ckpt_transport.store.directory import from_path
from ckpt_transport.store.loose import Loan
from ckpt_transport.store.outline import outline
from ckpt_transport.store.store import Progress, Store, StoredVersion

__all__ = ["Loan", "Progress", "Store", "StoredVersion", "from_path", "outline", "with_digests"]
