"""What is wrong with encoded bytes that are not what they claim to be."""

from __future__ import annotations

from ckpt_transport.deltas.sections import UNIT_DTYPES, sections
from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning import DeltaForm


def check_claims(raw: int, form: DeltaForm, unit: int, nbytes: int, count: int) -> None:
    """Check whether ``raw`` bytes can be ``count`` elements of a range of ``nbytes`` bytes.

    Raises:
        CheckpointError: they cannot.
    """
    if unit not in UNIT_DTYPES or nbytes < 0 or nbytes % unit or not 0 <= count <= nbytes // unit:
        raise CheckpointError(f"a delta claims {count} elements of {unit} bytes in a range of {nbytes} bytes")
    units = nbytes // unit
    if form is DeltaForm.WHOLE and count != units:
        raise CheckpointError(f"a delta carries a range of {units} elements whole, and claims {count}")
    if not count:
        if raw:
            raise CheckpointError(f"a delta without elements has {raw} bytes")
        return
    end = sections(form, unit, units, count).end
    if raw != end:
        raise CheckpointError(f"a delta of {count} elements as {form.value} takes {end} bytes and not {raw}")


def wrong_counts(count: int) -> CheckpointError:
    return CheckpointError(f"the counts of a delta's blocks do not add up to its {count} elements")


def wrong_places(units: int) -> CheckpointError:
    return CheckpointError(f"a delta's places do not ascend within its range of {units} elements")


def wrong_mask(units: int, count: int) -> CheckpointError:
    return CheckpointError(f"a delta's mask does not have {count} bits within its range of {units} elements")
