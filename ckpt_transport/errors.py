"""Every error this library raises, in one tree.

A plugin maps its library's own errors to these at one edge, with ``raise ... from``.
"""

from __future__ import annotations


class CkptTransportError(Exception):
    """Base of everything this library raises on purpose."""


class ConfigError(CkptTransportError):
    """A setting is unknown, has the wrong type, or cannot be met."""


class UsageError(CkptTransportError):
    """An object is used after ``close()``, in another process than the one that made it, inside its own call, or by two
    sinks at once."""


class StoreError(CkptTransportError):
    """A version cannot be registered, found or freed."""


class CheckpointError(StoreError):
    """A checkpoint file, its index or one of its tensors is not what it claims to be."""


class SharedMemoryError(StoreError):
    """Shared memory is full, missing, or belongs to somebody else."""


class PluginError(CkptTransportError):
    """A transport plugin cannot be used."""


class TransportNotFoundError(PluginError):
    """No plugin registers the name that was asked for; lists the names there are."""


class TransportConflictError(PluginError):
    """Two distributions register the same transport name; names both."""


class TransportUnavailableError(PluginError):
    """The plugin exists and cannot run on this machine; carries the reason and the cure."""

    def __init__(self, name: str, reason: str, hint: str = "") -> None:
        self.name, self.reason, self.hint = name, reason, hint
        cure = f"; {hint}" if hint else ""
        super().__init__(f"transport '{name}' is not available here: {reason}{cure}")


class PlanError(CkptTransportError):
    """A plan cannot be made, or does not hold."""


class PlanMismatchError(PlanError):
    """Two participants hold different plans, or a sink cannot apply this one."""


class RecordingError(PlanError):
    """What a loader does with a checkpoint cannot be recorded, or a record does not hold; says why."""


class UnwritableError(PlanError):
    """A tensor of an engine cannot be written in place; names it, why, and the cure. Nothing was written."""


class BudgetError(PlanError):
    """The memory budget holds not even one slot, which is the smallest pipeline that works."""


class CoverageError(PlanError):
    """The verifier found a byte that is missed, written twice or read too early."""


class ControlError(CkptTransportError):
    """The control plane failed."""


class MessageError(ControlError):
    """Bytes arrived on a control socket that are not a message of ours."""


class JoinError(ControlError):
    """A participant could not join: it did not answer in time, or refused."""


class EngineError(ControlError):
    """The control interface of an inference engine is not there, or did not do what it was asked."""


class UpdateError(CkptTransportError):
    """An update did not happen."""


class UpdateAbortedError(UpdateError):
    """The update failed and changed nothing: every sink still serves its old version."""


class SupersededError(UpdateAbortedError):
    """A newer version has taken the place of this one before anything was held; it changed nothing."""


class DeltaRefusedError(UpdateError):
    """A sink cannot take a version as its difference to another; says why. A source then sends everything."""


class TaintedError(UpdateError):
    """The update failed after some sinks had begun to apply it; those must not serve.

    Attributes:
        sinks: labels of the sinks that must not serve.
        serving: labels of sinks that serve the new version, where some had been told to before it failed.
    """

    def __init__(self, message: str, sinks: tuple[str, ...] = (), serving: tuple[str, ...] = ()) -> None:
        self.sinks, self.serving = sinks, serving
        super().__init__(message)


class TransportError(CkptTransportError):
    """A transport failed."""


class RegistrationError(TransportError):
    """Memory could not be registered with, mapped by or described to a transport."""


class RegionBusyError(TransportError):
    """A region was closed while an operation still uses it."""


class TransferError(TransportError):
    """The bytes of one transfer did not arrive."""


class PeerLostError(TransportError):
    """A member of the route is gone."""


class TransferTimeout(TransportError, TimeoutError):
    """A deadline passed. The operation is still outstanding; only ``abort`` ends it."""


class EndpointClosedError(TransportError):
    """The endpoint was closed by its own user."""


class EndpointBrokenError(TransportError):
    """The endpoint failed earlier and cannot be used again; the first cause is chained."""
