"""Events are counted and timed under the names that dashboards and alerts use."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ckpt_transport.events import Event, ServingChanged, UpdateEnded

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0)
"""Bounds of histograms: from the pause of a staged commit to the update of a large fleet."""


class Metrics:
    """Counts what it is told.

    Args:
        registry: where the metrics are found; by default that of the process, which vLLM's ``/metrics`` shows, too.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._updates = Counter(
            "ckpt_transport_updates_total",
            "Updates and rollbacks that have ended",
            ("kind", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "ckpt_transport_update_seconds",
            "From the call to its return",
            ("kind",),
            registry=registry,
            buckets=SECONDS,
        )
        self._phases = Counter(
            "ckpt_transport_phase_seconds_total", "Spent in each phase of updates", ("kind", "phase"), registry=registry
        )
        self._held = Histogram(
            "ckpt_transport_held_seconds",
            "Forward passes of a sink were held",
            ("kind",),
            registry=registry,
            buckets=SECONDS,
        )
        self._bytes = Counter(
            "ckpt_transport_bytes_total", "Of versions that were committed", ("transport",), registry=registry
        )
        self._received = Counter(
            "ckpt_transport_received_bytes_total",
            "Of buckets that came to members of updates that were committed",
            ("transport", "link"),
            registry=registry,
        )
        self._lost = Counter("ckpt_transport_members_lost_total", "Members that died or left", (), registry=registry)
        self._version = Gauge(
            "ckpt_transport_version_info", "1 for what a sink serves", ("sink", "version"), registry=registry
        )
        self._since = Gauge(
            "ckpt_transport_version_timestamp_seconds",
            "Since when a sink serves its version",
            ("sink",),
            registry=registry,
        )
        self._tainted = Gauge("ckpt_transport_tainted", "1 where a sink must not serve", ("sink",), registry=registry)
        self._in_doubt = Gauge(
            "ckpt_transport_in_doubt",
            "1 where a sink does not know which version the others serve",
            ("sink",),
            registry=registry,
        )
        self._staging = Gauge(
            "ckpt_transport_staging_bytes",
            "Memory in which a sink stages versions and keeps the one before",
            ("sink",),
            registry=registry,
        )
        self._serves: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Count an event; an observer for :func:`ckpt_transport.events.observe`."""
        match event:
            case UpdateEnded():
                self._update(event)
            case ServingChanged():
                self._serving(event)

    def _update(self, ended: UpdateEnded) -> None:
        self._updates.labels(ended.kind, ended.outcome).inc()
        self._seconds.labels(ended.kind).observe(ended.seconds)
        for phase, seconds in ended.phases.items():
            self._phases.labels(ended.kind, phase).inc(seconds)
        for seconds in ended.held.values():
            self._held.labels(ended.kind).observe(seconds)
        if ended.outcome == "committed" and ended.nbytes:
            self._bytes.labels("+".join(ended.transports)).inc(ended.nbytes)
        for each in ended.received:
            self._received.labels(each.transport, "network" if each.far else "host").inc(each.nbytes)
        self._lost.inc(len(ended.lost))

    def _serving(self, changed: ServingChanged) -> None:
        before = self._serves.get(changed.sink)
        if before != changed.version:
            if before is not None:
                self._version.remove(changed.sink, before)
            self._serves[changed.sink] = changed.version
            self._version.labels(changed.sink, changed.version).set(1)
            self._since.labels(changed.sink).set(changed.at)
        self._tainted.labels(changed.sink).set(bool(changed.tainted))
        self._in_doubt.labels(changed.sink).set(bool(changed.in_doubt))
        self._staging.labels(changed.sink).set(changed.staging_nbytes)
