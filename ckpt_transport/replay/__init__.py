"""A loader is recorded once, and then what it does with a checkpoint is done at the speed of a copy.

:func:`record` runs a loader on fake tensors and returns its :class:`Layout`: which slice of which tensor ends up where.
:class:`BucketCopyPlans` makes of it what is copied out of each bucket, and :class:`Replay` does that.
:class:`RecordedLoading` is the life cycle of all that, :class:`ModuleLoading` that of a plain module.
"""

from ckpt_transport.replay.bindings import Fingerprint as Fingerprint
from ckpt_transport.replay.bindings import fingerprint as fingerprint
from ckpt_transport.replay.bindings import named_tensors as named_tensors
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlan as BucketCopyPlan
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlans as BucketCopyPlans
from ckpt_transport.replay.compared_tensors import inverted_copy as inverted_copy
from ckpt_transport.replay.compared_tensors import is_replayed_as_loaded as is_replayed_as_loaded
from ckpt_transport.replay.layout import Layout as Layout
from ckpt_transport.replay.layout import Owner as Owner
from ckpt_transport.replay.layout import OwnerKind as OwnerKind
from ckpt_transport.replay.likeness_recorder import LikenessRecorder as LikenessRecorder
from ckpt_transport.replay.loading import LoadPass as LoadPass
from ckpt_transport.replay.loading import RecordedLoader as RecordedLoader
from ckpt_transport.replay.loading import RecordedLoading as RecordedLoading
from ckpt_transport.replay.loading import by_loader_in_words as by_loader_in_words
from ckpt_transport.replay.module_loading import ModuleLoading as ModuleLoading
from ckpt_transport.replay.record import Loader as Loader
from ckpt_transport.replay.record import Recording as Recording
from ckpt_transport.replay.record import record as record
from ckpt_transport.replay.rehearsal import Rehearsal as Rehearsal
from ckpt_transport.replay.rehearsal import of_targets as of_targets
from ckpt_transport.replay.replay import Replay as Replay
from ckpt_transport.replay.replayed_tensors import ReplayedTensors as ReplayedTensors
from ckpt_transport.replay.required_bytes import required_bytes as required_bytes
from ckpt_transport.replay.serving_recorder import SeenByPassesError as SeenByPassesError
from ckpt_transport.replay.tensor_assembler import TensorAssembler as TensorAssembler
from ckpt_transport.replay.tensor_snapshot import TensorSnapshot as TensorSnapshot
from ckpt_transport.replay.tensor_snapshot import refuse_unwritable as refuse_unwritable
from ckpt_transport.replay.writable_memory import WritesApart as WritesApart
