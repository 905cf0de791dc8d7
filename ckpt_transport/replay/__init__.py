"""What a loader does with a checkpoint, found out once and done again at the speed of a copy.

:func:`record` runs a loader on stand-ins and returns its :class:`Layout`: which slice of which tensor ends up where.
:class:`Scripts` makes of it what is to be done with each bucket, and :class:`Replay` does that.
:class:`RecordedLoading` does all of it for a plain module, and proves it; where it cannot, the loader itself runs.
"""

from ckpt_transport.replay.bindings import fingerprint, named_tensors
from ckpt_transport.replay.bound import Bound, refuse_unwritable
from ckpt_transport.replay.layout import Copy, Fill, Gap, Layout, Place, Program, Refusal, Target
from ckpt_transport.replay.loading import LoadPass, RecordedLoader, RecordedLoading, by_loader_in_words
from ckpt_transport.replay.module_loading import ModuleLoading
from ckpt_transport.replay.needs import needs
from ckpt_transport.replay.record import Load, Recording, key_of, record
from ckpt_transport.replay.replay import Replay, Written
from ckpt_transport.replay.script import Part, Script, Scripts

__all__ = [
    "Bound",
    "Copy",
    "Fill",
    "Gap",
    "Layout",
    "Load",
    "LoadPass",
    "ModuleLoading",
    "Part",
    "Place",
    "Program",
    "RecordedLoader",
    "RecordedLoading",
    "Recording",
    "Refusal",
    "Replay",
    "Script",
    "Scripts",
    "Target",
    "Written",
    "by_loader_in_words",
    "fingerprint",
    "key_of",
    "named_tensors",
    "needs",
    "record",
    "refuse_unwritable",
]
