"""A loader is recorded once, and then what it does with a checkpoint is done at the speed of a copy.

:func:`record` runs a loader on fake tensors and returns its :class:`Layout`: which slice of which tensor ends up where.
:class:`BucketCopyPlans` makes of it what is copied out of each bucket, and :class:`Replay` does that.
:class:`RecordedLoading` is the life cycle of all that, :class:`ModuleLoading` that of a plain module.
"""

from ckpt_transport.replay.bindings import fingerprint, named_tensors
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlan, BucketCopyPlans
from ckpt_transport.replay.layout import Layout, Owner, OwnerKind
from ckpt_transport.replay.loading import LoadPass, RecordedLoader, RecordedLoading, by_loader_in_words
from ckpt_transport.replay.module_loading import ModuleLoading
from ckpt_transport.replay.record import Loader, Recording, record
from ckpt_transport.replay.replay import Replay
from ckpt_transport.replay.required_bytes import required_bytes
from ckpt_transport.replay.tensor_snapshot import TensorSnapshot, refuse_unwritable

__all__ = [
    "BucketCopyPlan",
    "BucketCopyPlans",
    "Layout",
    "LoadPass",
    "Loader",
    "ModuleLoading",
    "Owner",
    "OwnerKind",
    "RecordedLoader",
    "RecordedLoading",
    "Recording",
    "Replay",
    "TensorSnapshot",
    "by_loader_in_words",
    "fingerprint",
    "named_tensors",
    "record",
    "refuse_unwritable",
    "required_bytes",
]
