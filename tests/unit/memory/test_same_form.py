"""Given tensors that are looked at again, then it is told in one call whether they have the form that others had."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable

import pytest
import torch

from ckpt_transport.memory import SameForm, any_nested

Tensors = list[torch.Tensor]


def some() -> Tensors:
    return [torch.ones(2, 3), torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16)), torch.tensor(1.0 + 2j)]


def nested(*parts: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises another layout
        return torch.nested.nested_tensor(list(parts), layout=torch.strided)


def form_of(tensors: Tensors) -> SameForm:
    found = SameForm.of(tensors)
    assert found is not None
    return found


def test_given_other_tensors_of_the_same_form_then_it_is_told() -> None:
    form = form_of(some())
    assert form.is_that_of(some())
    with torch.no_grad():
        assert form.is_that_of(some())


@pytest.mark.parametrize(
    "changed",
    [
        lambda a, b, c: [a, b],
        lambda a, b, c: [a, b, c, c],
        lambda a, b, c: [a.reshape(3, 2), b, c],
        lambda a, b, c: [torch.ones(3, 2).t(), b, c],
        lambda a, b, c: [a.double(), b, c],
        lambda a, b, c: [a.to("meta"), b, c],
        lambda a, b, c: [a, b.detach(), c],
        lambda a, b, c: [a, b.view(torch.float16), c],
        lambda a, b, c: [a, b, c.conj()],
        lambda a, b, c: [torch.zeros(2, 3, dtype=torch.complex64).conj().imag, b, c],
        lambda a, b, c: [a.to_sparse(), b, c],
    ],
)
def test_given_tensors_of_another_form_then_it_is_told(changed: Callable[..., Tensors]) -> None:
    form = form_of(some())
    assert not form.is_that_of(changed(*some()))


def test_given_a_tensor_of_inference_mode_then_it_has_another_form_than_one_whose_writes_are_counted() -> None:
    with torch.inference_mode():
        uncounted = torch.ones(3)
    assert not form_of([torch.ones(3)]).is_that_of([uncounted])
    assert not form_of([uncounted]).is_that_of([torch.ones(3)])


def test_given_a_tensor_of_two_names_then_it_has_the_same_form_as_long_as_it_is_one() -> None:
    one, other = torch.ones(3), torch.ones(3)
    form = form_of([one, other, one])
    assert form.is_that_of([other, one, other])
    assert not form.is_that_of([one, one, one])
    assert not form.is_that_of([one, other, other])
    assert not form_of([one, other]).is_that_of([one, one])


def test_given_the_form_of_a_tensor_then_the_tensor_is_not_kept() -> None:
    tensor = torch.ones(3)
    kept, form = weakref.ref(tensor), form_of([tensor])
    del tensor
    assert kept() is None
    assert form.is_that_of([torch.ones(3)])


def test_given_a_nested_tensor_then_no_form_is_told() -> None:
    assert any_nested([torch.ones(3), nested(torch.ones(2))])
    assert SameForm.of([torch.ones(3), nested(torch.ones(2))]) is None
