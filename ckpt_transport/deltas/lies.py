"""What is wrong with encoded bytes that are not what they claim to be."""

from __future__ import annotations

from ckpt_transport.errors import CheckpointError


def wrong_counts(count: int) -> CheckpointError:
    return CheckpointError(f"the counts of a delta's blocks do not add up to its {count} elements")


def wrong_places(units: int) -> CheckpointError:
    return CheckpointError(f"a delta's places do not ascend within its range of {units} elements")


def wrong_mask(units: int, count: int) -> CheckpointError:
    return CheckpointError(f"a delta's mask does not have {count} bits within its range of {units} elements")
