"""What is computed of a version is the same however much is computed at once, so that versions are compared by it."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.checkpoint import Store
from ckpt_transport.deltas import CopiedBytes, MadeBytes, find_differences, ranges_of
from ckpt_transport.errors import CheckpointError
from ckpt_transport_fp8 import quantized
from ckpt_transport_fp8.scheme import Scheme
from tests.unit.adapters.test_fp8_quantized import CPU, SCHEMES, target
from tests.unit.adapters.test_fp8_reuse import NORM, Weights, weights

EACH_SCHEME = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())


def stepped(before: Weights) -> Weights:
    """One element of each has moved, and one of a matrix is the largest of its group."""
    found = {name: tensor.clone() for name, tensor in before.items()}
    for tensor in found.values():
        tensor.view(-1)[5] += 1
    next(iter(found.values()))[17, 3] = 100.0
    return found


@EACH_SCHEME
def test_given_a_version_then_its_bytes_are_those_of_its_copy_wherever_it_is_cut_and_0_between_tensors(
    scheme: Scheme,
) -> None:
    with Store() as store:
        loan = quantized(weights(1), target(scheme), CPU)
        stored = store.lend("step-1", loan)
        assert stored.made_on == CPU
        copy = store.keep_copy("step-1", CPU).buffers[0].tensor
        assert loan.backing is not None
        made = MadeBytes(loan.backing, CPU)
        for length in (256, 7 * 256, 1 << 16, loan.backing.nbytes):
            starts = range(0, loan.backing.nbytes, length)
            (each, *others) = made.parts([(at, min(length, loan.backing.nbytes - at)) for at in starts])
            assert torch.equal(torch.cat([each, *others]), copy)
            for at in starts:
                part = copy[at : at + length]
                (alone,) = made.parts([(at, part.numel())])
                assert torch.equal(alone, part)
        for tensor in loan.tensors:
            end = tensor.offset + tensor.nbytes
            assert not copy[end : end + -end % 256].any()


@EACH_SCHEME
def test_given_a_step_then_what_is_found_where_it_is_computed_is_what_differs_between_two_copies(
    scheme: Scheme,
) -> None:
    known, old = target(scheme), weights(1)
    with Store() as store:
        store.lend("step-1", quantized(old, known, CPU))
        base = store.keep_copy("step-1", CPU)
        stored = store.lend("step-2", quantized(stepped(old), known, CPU))
        other = store.register("copied", tensors=quantized(stepped(old), known, CPU))
        ranges = ranges_of(stored.manifest.tensors, 1 << 20)
        (backing,), (copy,) = stored.extents, other.buffers
        made, copied = (
            find_differences(ranges, base.buffers, [compared], 1 << 40, lambda: None)
            for compared in (MadeBytes(backing, CPU), CopiedBytes(copy))
        )
        assert made is not None
        assert copied is not None
        assert 0 < made.nbytes < 0.1 * backing.nbytes
        for one, same in zip(made.found, copied.found, strict=True):
            assert one.range == same.range
            assert (one.encoded.form, one.encoded.count) == (same.encoded.form, same.encoded.count)
            assert torch.equal(one.encoded.raw, same.encoded.raw)


@EACH_SCHEME
def test_given_somebody_who_writes_to_weights_then_no_copy_is_kept_of_what_they_have_become(scheme: Scheme) -> None:
    made = weights(1)
    with Store() as store:
        store.lend("step-1", quantized(made, target(scheme), CPU))
        made[NORM][0] += 1
        with pytest.raises(CheckpointError, match=f"'{NORM}' was changed"):
            store.keep_copy("step-1", CPU)
        assert store.kept is None
