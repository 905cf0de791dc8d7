"""Holds the life cycle of a recorded loader: it is recorded, its replay is verified, and then only the replay runs.

Where a loader cannot be recorded, or its replay does not leave what it leaves, the loader itself loads.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch

from ckpt_transport.engine import LoadedBucket
from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import Landing
from ckpt_transport.planning import Share, TensorSpec, digest_of
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlans, UnknownTensorError
from ckpt_transport.replay.divided_layout import DividedLayout
from ckpt_transport.replay.exclude_unsupported import exclude_unsupported
from ckpt_transport.replay.layout import Layout, Owner
from ckpt_transport.replay.record import Recording

logger = logging.getLogger(__name__)


class RecordedLoader:
    """A loader that was recorded for one set of tensors, and what was found out about its replay.

    Args:
        recording: what the loader does.
        refusal: why the loader must load all the same; empty when its replay may.

    Attributes:
        layout: what is replayed of the recording.
        plans: how each bucket is copied by that layout.
        verified: the replay was found to leave what the loader leaves.
        recording_seconds: how long recording took.
        loader_seconds: how long the loader takes for a version; 0 when that was not measured.
        share: what a version must bring; None for everything, and as long as the replay is not verified.
    """

    def __init__(self, recording: Recording, refusal: str = "") -> None:
        self.recording, self.refusal = recording, refusal
        self.layout = recording.layout
        self.plans = BucketCopyPlans(self.layout)
        self._divided: DividedLayout | None = None
        self._whole_part: Self | None = None
        self.verified = False
        self.recording_seconds = self.loader_seconds = 0.0
        self.share: Share | None = None

    @property
    def holds(self) -> bool:
        """Whether the loader would still do what was recorded, as far as that hangs on values and not on the model."""
        return all(torch.equal(tensor, before) for tensor, before in self.recording.guards)

    def exclude(self, reasons: Mapping[Owner, str], together: Iterable[Sequence[Owner]] = ()) -> None:
        """Leave tensors to the loader, and with them all that is loaded together; see :func:`exclude_unsupported`."""
        self._replays(exclude_unsupported(self.layout, reasons, together))

    @property
    def divided(self) -> DividedLayout:
        """Which tensors of the module single elements are followed to, and which are loaded with all of theirs."""
        if self._divided is None:
            self._divided = DividedLayout(self.layout, self._takes_whole())
        return self._divided

    @property
    def whole_part(self) -> Self:
        """The same loader, of which only that part is replayed whose targets are loaded with all of theirs."""
        if self._whole_part is None:
            self._whole_part = part = copy(self)
            part._replays(self.divided.whole)
            part._becomes_part()
        return self._whole_part

    def _becomes_part(self) -> None:
        """Only the layout is that of the part yet; what else is known of the loader is that of the whole."""

    def _takes_whole(self) -> Mapping[int, str]:
        """Targets that no single elements are written to, besides those that the loader computes, and why."""
        return {}

    def _replays(self, layout: Layout) -> None:
        self.layout, self.plans = layout, BucketCopyPlans(layout)
        self._divide_anew()

    def _divide_anew(self) -> None:
        self._divided = self._whole_part = None


class LoadPass(ABC):
    """One version on its way into a model."""

    def begin(self) -> None:
        """Prepare the model. What follows is undone by :meth:`restore` when it fails."""

    @abstractmethod
    def load(self, bucket: LoadedBucket) -> None:
        """Bring one bucket into the model."""

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        """Where the bytes of a bucket are to be in host memory; None where :meth:`load` must be given them."""
        return None

    def landed(self, bucket: LoadedBucket) -> None:
        """The bytes of a bucket are where :meth:`landing` said: do the rest."""

    @abstractmethod
    def finish(self) -> str:
        """Complete the version, all buckets of which have come. Returns what was done, in words.

        Raises:
            RecordingError: something waits for a tensor that did not come.
        """

    def restore(self) -> None:
        """Put the model into a state that another pass can start from, because this one has failed."""


Recorded = TypeVar("Recorded", bound=RecordedLoader)


@dataclass
class _Attempt(Generic[Recorded]):
    """What came of recording the loader for a set of tensors.

    Attributes:
        specs: these tensors.
        recorded: the recording; None when the loader could not be recorded.
        refusal: why not.
        fingerprint: of the model that it was recorded for.
    """

    specs: tuple[TensorSpec, ...]
    recorded: Recorded | None
    refusal: str
    fingerprint: object

    def is_for(self, specs: tuple[TensorSpec, ...]) -> bool:
        """Whether it is about these tensors, in whatever order they come. They are kept, to be known when they come
        again."""
        if self.specs is not specs:
            if self.specs != specs and digest_of(self.specs) != digest_of(specs):
                return False
            self.specs = specs
        return True


class RecordedLoading(ABC, Generic[Recorded]):
    """Brings versions into a model by its loader, which is recorded at the first version and replayed from then on.

    The first version is loaded by the loader and by its replay, and both are compared; later ones are only replayed,
    unless every one is to be compared. When the model has changed, or a version brings other tensors, the loader is
    recorded again.

    For each version: :meth:`share`, :meth:`prepare`, :meth:`start`, :meth:`load` for each bucket, :meth:`finish`. When
    one of these fails after :meth:`start`: :meth:`abandon`.

    Args:
        label: what people call the model.
        verify_always: compare each replay with the loader.

    Attributes:
        apply_summary: how the last version was applied, in words.
    """

    def __init__(self, label: str, *, verify_always: bool = False) -> None:
        self.label, self.apply_summary = label, ""
        self._verify_always = verify_always
        self._specs: tuple[TensorSpec, ...] | None = None
        self._coming: Share | None = None
        self._attempt: _Attempt[Recorded] | None = None
        self._pass: LoadPass | None = None

    # -- what differs between models ----------------------------------------------------------------------------------

    @abstractmethod
    def record(self, specs: tuple[TensorSpec, ...]) -> Recorded:
        """Record the loader for these tensors.

        Raises:
            RecordingError: it cannot be recorded, so it must load.
        """

    @abstractmethod
    def fingerprint(self) -> object:
        """A value that differs when the model is not the one that its loader was recorded for."""

    def refusal(self, error: RecordingError) -> str:
        """Why the loader must load, since it cannot be recorded; raises when it cannot load either."""
        return str(error)

    @abstractmethod
    def by_loader(self, refusal: str) -> LoadPass:
        """A pass in which the loader loads, because of ``refusal``."""

    @abstractmethod
    def compared(self, recorded: Recorded) -> LoadPass:
        """A pass in which both the loader and its replay load, and that says in ``recorded`` whether they agree."""

    @abstractmethod
    def replayed(self, recorded: Recorded) -> LoadPass:
        """A pass in which the replay loads."""

    # -- the life cycle -----------------------------------------------------------------------------------------------

    @property
    def recorded(self) -> Recorded | None:
        """The recording that is at hand."""
        return None if self._attempt is None else self._attempt.recorded

    @property
    def recording_summary(self) -> str:
        """What came of recording the loader, in words."""
        if self._attempt is None:
            return "did not record the loader, which the first update does while requests are held"
        return (
            f"could not record the loader: {self._attempt.refusal}" if self._attempt.refusal else "recorded the loader"
        )

    @property
    def started(self) -> bool:
        """Whether a version is on its way in."""
        return self._pass is not None

    def share(self) -> Share | None:
        """The bytes that the next version must bring; None for everything."""
        recorded = self.recorded
        if self._verify_always or recorded is None or not recorded.verified or not self._is_current():
            return None
        return recorded.share

    def prepare(self, specs: Iterable[TensorSpec], share: Share | None = None) -> None:
        """Hear what the next version has.

        Args:
            specs: all of its tensors.
            share: the bytes of them that come; None for all.
        """
        self._specs, self._coming = tuple(specs), share

    def foresee(self, buckets: Iterable[LoadedBucket]) -> None:
        """Hear which buckets come, after :meth:`prepare`. Where its loader is replayed, find out how each is copied.

        What it does not know, :meth:`load` finds.
        """
        recorded = self.recorded
        if recorded is None or recorded.refusal:
            return
        with suppress(UnknownTensorError):
            for bucket in buckets:
                recorded.plans.of(bucket)

    def start(self) -> None:
        """Record the loader where that is still to be done, and get ready to load. Does nothing when that was done.

        Raises:
            RecordingError: the model has changed, and only a share of the version comes, or the loader fails on it.
        """
        if self._pass is None:
            self._pass = self._choose()
            self._pass.begin()

    def load(self, bucket: LoadedBucket) -> None:
        """Bring one bucket in."""
        self.start()
        assert self._pass is not None
        self._pass.load(bucket)

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        """Where the bytes of a bucket are to be in host memory, so that they are read straight to there, and then
        :meth:`landed` is called; None where :meth:`load` must be given them.
        """
        self.start()
        assert self._pass is not None
        return self._pass.landing(bucket)

    def landed(self, bucket: LoadedBucket) -> None:
        """The bytes of a bucket are where :meth:`landing` said."""
        assert self._pass is not None
        self._pass.landed(bucket)

    @property
    def unread(self) -> str:
        """Why :meth:`landing` has no places to offer for the next version; empty where it has some."""
        recorded = self.recorded
        if recorded is not None and recorded.refusal:
            return "its loader has to load"
        if self._verify_always:
            return "each replay is compared with its loader, which must be given tensors"
        if recorded is None or not recorded.verified or not self._is_current():
            return "its loader was not replayed yet"
        return ""

    def finish(self) -> None:
        """Complete the version, if one was begun.

        Raises:
            RecordingError: something waits for a tensor that did not come.
        """
        if self._pass is None:
            return
        self.apply_summary = self._pass.finish()
        self._pass = None

    def release(self) -> None:
        """Keep nothing of the version that was on its way in."""
        self._pass = None

    def abandon(self) -> None:
        """The version could not be loaded: put the model in order, and rely on nothing that was recorded."""
        failed, self._attempt = self._pass, None
        self.release()
        if failed is not None:
            failed.restore()

    def _is_current(self) -> bool:
        """Whether the model is as it was when its loader was recorded."""
        attempt = self._attempt
        return (
            attempt is not None
            and attempt.fingerprint == self.fingerprint()
            and (attempt.recorded is None or attempt.recorded.holds)
        )

    def _choose(self) -> LoadPass:
        if self._specs is None:
            return self.by_loader("")
        attempt = self._attempted(self._specs, self.record)
        recorded = attempt.recorded
        if recorded is None or recorded.refusal:
            return self.by_loader(attempt.refusal if recorded is None else recorded.refusal)
        return self.compared(recorded) if self._verify_always or not recorded.verified else self.replayed(recorded)

    def _attempted(
        self, specs: tuple[TensorSpec, ...], record: Callable[[tuple[TensorSpec, ...]], Recorded]
    ) -> _Attempt[Recorded]:
        """What came of recording the loader for these tensors; it is recorded now unless that still holds."""
        if self._attempt is None or not self._attempt.is_for(specs) or not self._is_current():
            if self._coming is not None:
                raise RecordingError(f"{self.label} has changed, and only a share of the version comes")
            self._attempt = self._attempt_to(record, specs)
        return self._attempt

    def _attempt_to(
        self, record: Callable[[tuple[TensorSpec, ...]], Recorded], specs: tuple[TensorSpec, ...]
    ) -> _Attempt[Recorded]:
        fingerprint, began = self.fingerprint(), time.perf_counter()
        recorded = None
        try:
            recorded = record(specs)
        except RecordingError as error:
            refusal = self.refusal(error)
        else:
            recorded.recording_seconds = time.perf_counter() - began
            refusal = recorded.refusal
        if refusal:
            logger.warning("%s: weights are loaded by the loader and not replayed: %s", self.label, refusal)
        return _Attempt(specs, recorded, refusal, fingerprint)


def by_loader_in_words(seconds: float, refusal: str) -> str:
    """How a version was applied that the loader has loaded, and why it had to."""
    return f"loaded by the loader in {seconds:.3f} s" + (f": {refusal}" if refusal else "")
