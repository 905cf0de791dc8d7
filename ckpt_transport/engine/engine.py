"""An adapter implements :class:`Engine`, the way into one inference engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence

import torch

from ckpt_transport.engine.loaded_bucket import LoadedBucket
from ckpt_transport.engine.served_elements import ServedElements
from ckpt_transport.engine.staged_tensors import StagedTensors
from ckpt_transport.errors import DeltaRefusedError, PlanMismatchError
from ckpt_transport.memory import Fence, Landing, compile_kernels
from ckpt_transport.planning import Share, StagingPlace, TensorSpec


class Engine(ABC):
    """An engine takes the weights of one sink. Its methods are called on the sink's thread, but for :meth:`give_up`
    and :meth:`warm_up`.

    In an update they are called in this order: :meth:`begin`, then the questions (:meth:`share`, :meth:`expects`,
    :meth:`check`, :meth:`ties`, :meth:`prepare`), :meth:`foresee`, :meth:`hold`, :meth:`advance`, :meth:`confirm`,
    :meth:`load` for each bucket, :meth:`finish`, :meth:`certify`, :meth:`resume`. One that fails is ended by
    :meth:`resume` where nothing was loaded, and by :meth:`taint` otherwise. Before :meth:`finish` there may be
    :meth:`meanwhile`.

    A staged update loads before it holds: :meth:`can_stage` is one of the questions, then :meth:`stage`, :meth:`load`
    for each bucket, :meth:`finish`, :meth:`hold`, :meth:`advance`, :meth:`confirm`, :meth:`exchange`, :meth:`certify`,
    :meth:`resume`. One that fails after :meth:`exchange` is taken back by another.

    A staged version that is dropped, and a warm-up of a trainer, end by :meth:`resume` before :meth:`hold`. What was
    found out, and the staging area, should be kept for the next update.

    In an update that brings a delta another engine is in between, which keeps what comes: this one is asked for
    :meth:`served_elements`, and for :meth:`stage_whole` where these name modules, held, and given
    :meth:`exchange_elements`.

    Attributes:
        whole_tensors: the loader cannot take a tensor in pieces.
        keeps_tensors: the loader keeps whole tensors until it has all of a module. What does not last is copied by
            the adapter, and the plan counts that memory.
        enqueues: :meth:`load` reads the bytes only in work on the current stream of ``device``, so that they need not
            have arrived when it is called; on a CPU this means nothing.
        reads_along: on a CPU :meth:`load` calls :attr:`LoadedBucket.along`, where there is one, for what it reads; else
            digests are computed beside it.
        group: sinks with the same non-empty group are ranks of one engine (tensor parallel): they hold their forward
            passes before the same one.
        label: what people call this sink.
        device: where its weights are.
        unread: why :meth:`landing` has no places to offer, in words.
        apply_summary: how the last update was applied, in words for the report; empty when there is nothing to say.
    """

    whole_tensors: bool = False
    keeps_tensors: bool = False
    enqueues: bool = False
    reads_along: bool = False
    group: str = ""
    label: str = ""
    device: torch.device = torch.device("cpu")
    unread: str = "its engine must be given its tensors"
    apply_summary: str = ""

    def warm_up(self, specs: Sequence[TensorSpec]) -> Generator[str]:
        """Do, step by step, what the first update would do and can be done while forward passes run.

        It is iterated over on another thread, while no other method is called, and closed when an update comes. What an
        override does beside this, it does before and after ``yield from super().warm_up(specs)``.

        Args:
            specs: the tensors that versions will have.

        Yields: each step in a few words, when it is done. One that is told with the next says nothing.
        """
        if self.device.type != "cpu":
            compile_kernels(self.device)
            yield "compiled kernels"

    def begin(self) -> None:
        """Look at what is served now, because an update begins. Forward passes still run.

        The attributes, and the answers to all questions, are about what was found here.

        Raises:
            UnwritableError: a tensor cannot be written; names it.
        """

    def share(self) -> Share | None:
        """The bytes that a version must bring, where they are known and not all of it; None for everything.

        An engine that names a share must take in versions of the share's tensors of which nothing else comes. It is
        asked again when its forward passes are held, and the update is refused if it says something else.
        """
        return None

    def prepare(self, specs: Sequence[TensorSpec], share: Share | None) -> None:
        """Hear which tensors the next version has, before anything is held. Forward passes still run.

        What takes long and can be done now should not be left to :meth:`confirm`, during which requests wait.

        Args:
            specs: all tensors of the version.
            share: what comes of them at least, as :meth:`share` has said; None for everything.
        """

    def foresee(self, buckets: Iterable[LoadedBucket]) -> None:
        """Hear which buckets come, in which runs of memory, before anything is held. Forward passes still run.

        Called after :meth:`prepare`, and after :meth:`stage` in a staged update. What :meth:`load` has to know of each
        can be found out now, instead of while requests wait.

        Args:
            buckets: with their keys and places; their bytes are not there yet.
        """

    @abstractmethod
    def expects(self) -> tuple[TensorSpec, ...] | None:
        """The tensors that a new version must bring, or None when only the loader knows."""

    def check(self, tensors: Sequence[TensorSpec]) -> None:
        """Look at what a new version brings, before it is compared with :meth:`expects`. Nothing has been moved yet.

        Raises:
            PlanMismatchError: the engine cannot take it; names the tensor.
        """

    def ties(self) -> tuple[frozenset[str], ...]:
        """Names that share memory (tied weights): of each set, a version must bring at least one, and one value."""
        return ()

    def can_stage(self, budget: int) -> str:
        """Why a version cannot be loaded beside what is served, and exchanged with it; empty when it can.

        Args:
            budget: bytes that the staging area may take, besides those that it has.
        """
        return f"{self.label or type(self).__name__} loads in place only"

    def staging_place(self) -> StagingPlace | None:
        """Where the next version is staged, asked after :meth:`can_stage` gave no reason; None where that is not known.

        The pause for the exchange is predicted from it.
        """
        return None

    def stage(self) -> None:
        """From now on, until this update ends, load into the staging area. Forward passes still run.

        Raises:
            BudgetError: the memory for it cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__}.can_stage() gave no reason, and stage() is missing")

    def restore(self) -> None:
        """The exchange of this update is to bring back the version before, which is in the staging area.

        Raises:
            PlanMismatchError: it is not there any more.
        """
        raise PlanMismatchError(f"{self.label or type(self).__name__} keeps no version but the one it serves")

    def exchange(self) -> None:
        """Exchange what is staged and what is served: no forward pass runs, and all was loaded. Twice changes nothing.

        It is complete when it returns, and also when it is interrupted.

        Raises:
            PlanMismatchError: what is served is not what the staging area was made for; nothing was changed.
        """
        raise NotImplementedError(f"{type(self).__name__}.can_stage() gave no reason, and exchange() is missing")

    def served_elements(self) -> ServedElements:
        """Where the bytes of a version are in what is served now, so that a delta can change single elements.

        It is asked in updates and between them, while forward passes run.

        Raises:
            DeltaRefusedError: this engine takes whole versions only; says why.
        """
        raise DeltaRefusedError(f"{self.label or type(self).__name__} takes whole versions only")

    def stage_whole(self) -> StagedTensors:
        """Memory beside what is served for the modules that :attr:`ServedElements.whole` has named just now.

        Raises:
            BudgetError: the memory for it cannot be had.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.served_elements() names modules, and stage_whole() is missing"
        )

    def exchange_elements(self, exchange: Callable[[], None]) -> None:
        """Have ``exchange`` change elements of what is served: no forward pass runs.

        An engine that keeps what it has computed of the other values, as of prompts, forgets that.
        """
        exchange()

    def digest(self) -> str:
        """A digest of what is served, by which engines can be compared; empty when this engine has none.

        Called on the sink's thread when no update is under way. Forward passes run.
        """
        return ""

    @property
    def staging_nbytes(self) -> int:
        """Bytes of memory that the staging area has now."""
        return 0

    def drop_staged(self) -> None:
        """Give the memory of the staging area back, and with it the version before."""

    @abstractmethod
    def hold(self) -> int:
        """Start no further forward pass; return how many have been started. Must not wait."""

    @abstractmethod
    def advance(self, forwards: int, timeout: float) -> None:
        """Let forward passes run until ``forwards`` have been started, then wait until none runs.

        Raises:
            TimeoutError: that did not happen within ``timeout`` seconds.
        """

    def confirm(self) -> None:
        """Get ready to be given bytes: no forward pass runs, and nothing has been moved to any sink.

        Raises:
            PlanMismatchError: what is served is not as :meth:`begin` found it; the update must begin again.
            UnwritableError: a tensor cannot be written; names it.
        """

    @property
    def spoiled(self) -> bool:
        """Whether getting ready may have changed what is served, so that only the new version may be served now."""
        return False

    @abstractmethod
    def load(self, pieces: LoadedBucket) -> Fence | None:
        """Put one bucket's tensors into the engine, in place.

        Returns: when the bytes of ``pieces`` have been read, where that is enqueued on a device; None for now.
        """

    def landing(self, pieces: LoadedBucket) -> Landing | None:
        """Where the bytes of a bucket are to be in host memory, so that they are read straight to there instead of
        being given to :meth:`load`. None where they must be given.

        Asked where the bucket lies in another process, when :meth:`load` would be called; the bytes come at once, and
        then :meth:`landed` is called. An engine that overrides it leaves :attr:`unread` empty where it expects to have
        such places.
        """
        return None

    def landed(self, pieces: LoadedBucket) -> None:
        """The bytes of a bucket are where :meth:`landing` said: do with them what is left to do."""

    def meanwhile(self) -> None:
        """All buckets were given to :meth:`load`, and a device may still be reading them: do what need not wait for it.

        Not called where the sink has something else to do then. What is found wrong is left to :meth:`finish`. Digests
        may still be compared: where one differs, what was completed in place is tainted, what was staged not exchanged.
        """

    @abstractmethod
    def finish(self) -> None:
        """Every tensor was loaded: do what must be done before the engine serves them.

        Raises:
            UpdateError: what forward passes use is not what was loaded; names it.
        """

    def certify(self) -> None:
        """Look whether forward passes still use what was loaded, because they are about to run again.

        Raises:
            UpdateError: they use something else; names it.
        """

    @abstractmethod
    def resume(self) -> float:
        """Let forward passes run again; return for how many seconds they were held (0 when they were not)."""

    @abstractmethod
    def taint(self, reason: str) -> None:
        """The weights are a mix of two versions: refuse every forward pass, with ``reason``."""

    def give_up(self, taint: str) -> None:
        """Say what may be served while the sink's thread is stuck, in a method of this engine or elsewhere.

        Called from another thread, when the update was aborted or is late and the thread does not take that in. It must
        not wait for the thread, and touch nothing that the other methods use but what holds forward passes. When the
        thread comes back, it calls :meth:`taint` or :meth:`resume`, too. Override it where these do more.

        Args:
            taint: why every forward pass must be refused, since the weights may be a mix of two versions; empty when
                nothing was loaded, so that they may run again.
        """
        if taint:
            self.taint(taint)
        else:
            self.resume()
