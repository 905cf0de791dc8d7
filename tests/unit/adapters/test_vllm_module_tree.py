"""The modules of a vLLM model are walked through once, and again where one of them has changed."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Linear, Module, ModuleList, Sequential

from ckpt_transport_vllm.module_tree import ModuleTree


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = ModuleList(Sequential(Linear(2, 2), torch.nn.LayerNorm(2)) for _ in range(3))
        self.walks = 0

    def named_modules(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.walks += not args and not kwargs
        return super().named_modules(*args, **kwargs)


def tree_of(model: Model) -> ModuleTree:
    return ModuleTree(model, lambda module: isinstance(module, torch.nn.LayerNorm))


def test_given_a_model_that_stays_when_it_is_looked_at_again_then_it_is_not_walked_through_again() -> None:
    model = Model()
    tree = tree_of(model)
    assert tree.modules == dict(Module.named_modules(model))
    assert tree.attention == [layer[1] for layer in model.layers]
    walks = model.walks
    assert tree.modules["layers.1.0"] is model.layers[1][0]
    assert model.walks == walks


def test_given_a_module_that_took_the_place_of_another_when_it_is_looked_at_again_then_the_new_one_is_found() -> None:
    model = Model()
    tree = tree_of(model)
    model.layers[2][1] = torch.nn.LayerNorm(2)
    assert tree.attention[2] is model.layers[2][1] is tree.modules["layers.2.1"]


def test_given_modules_that_come_and_go_when_it_is_looked_at_again_then_it_has_what_the_model_has() -> None:
    model = Model()
    tree = tree_of(model)
    model.layers.append(Sequential(Linear(2, 2)))
    assert "layers.3.0" in tree.modules
    del model.layers[0]
    assert tree.modules == dict(Module.named_modules(model))
