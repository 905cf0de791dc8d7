"""A source keeps the versions that it sends here, read from files or copied from tensors into memory that it reuses."""

from ckpt_transport.checkpoint import rules as rules
from ckpt_transport.checkpoint.digests import with_digests as with_digests
from ckpt_transport.checkpoint.directory import from_path as from_path
from ckpt_transport.checkpoint.mapping import Mapping as Mapping
from ckpt_transport.checkpoint.outline import outline as outline
from ckpt_transport.checkpoint.progress import Progress as Progress
from ckpt_transport.checkpoint.rule import describe_given as describe_given
from ckpt_transport.checkpoint.scattered import Loan as Loan
from ckpt_transport.checkpoint.shards import TensorPairs as TensorPairs
from ckpt_transport.checkpoint.shards import Tensors as Tensors
from ckpt_transport.checkpoint.shards import TensorShard as TensorShard
from ckpt_transport.checkpoint.shards import comes_in_pairs as comes_in_pairs
from ckpt_transport.checkpoint.shards import parts_of as parts_of
from ckpt_transport.checkpoint.store import Lease as Lease
from ckpt_transport.checkpoint.store import Store as Store
from ckpt_transport.checkpoint.stored_version import StoredVersion as StoredVersion
