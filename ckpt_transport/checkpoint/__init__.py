"""A source keeps the versions that it sends here, read from files or copied from tensors into memory that it reuses."""

from ckpt_transport.checkpoint.digests import with_digests
from ckpt_transport.checkpoint.directory import from_path
from ckpt_transport.checkpoint.outline import outline
from ckpt_transport.checkpoint.scattered import Loan
from ckpt_transport.checkpoint.shards import Tensors, TensorShard, parts_of
from ckpt_transport.checkpoint.store import Progress, Store, StoredVersion

__all__ = [
    "Loan",
    "Progress",
    "Store",
    "StoredVersion",
    "TensorShard",
    "Tensors",
    "from_path",
    "outline",
    "parts_of",
    "with_digests",
]
