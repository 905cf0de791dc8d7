"""Given tensors whose memory began somewhere when it was last asked, then what they hold is found where it is."""

from __future__ import annotations

import torch

from ckpt_transport.memory import ByteViews

MEMORY = 64


def views_as_if_memory_began(before: int, tensor: torch.Tensor) -> tuple[ByteViews, int]:
    """The bytes of a tensor of which it was told that its memory begins so many bytes too early, and the beginning."""
    begin = tensor.untyped_storage().data_ptr()
    return ByteViews([tensor], [tensor.data_ptr()], [tensor.nbytes], [begin - before]), begin


def test_given_memory_that_begins_where_it_did_then_its_bytes_are_seen_and_nothing_has_moved() -> None:
    tensor = torch.arange(MEMORY, dtype=torch.uint8)[8:24]
    views, begin = views_as_if_memory_began(0, tensor)
    assert torch.equal(views[0], tensor)
    assert views.begins == views.begins_now() == [begin]


def test_given_a_tensor_that_has_become_a_part_of_other_memory_then_its_bytes_are_seen_and_nothing_has_moved() -> None:
    """Given that it has the address that it had, then where its memory begins is found out late, and kept."""
    tensor = torch.arange(MEMORY, dtype=torch.uint8)[8:24]
    views, begin = views_as_if_memory_began(16, tensor)
    assert torch.equal(views[0], tensor)
    assert views.begins_now() == [begin]
    assert views.begins == [begin]


def test_given_memory_that_its_owner_frees_before_it_was_asked_where_it_begins_then_that_is_seen() -> None:
    tensor = torch.arange(MEMORY, dtype=torch.uint8)
    views, begin = views_as_if_memory_began(0, tensor)
    tensor.untyped_storage().resize_(0)
    assert views.begins_now() != [begin]
    assert views.begins == [begin]


def test_given_memory_that_is_made_larger_before_it_was_asked_where_it_begins_then_that_is_seen() -> None:
    tensor = torch.arange(MEMORY, dtype=torch.uint8)
    views, begin = views_as_if_memory_began(0, tensor)
    blocked = [torch.empty(MEMORY, dtype=torch.uint8) for _ in range(100)]
    tensor.untyped_storage().resize_(1 << 20)
    assert views.begins_now() != views.begins == [begin]
    del blocked
