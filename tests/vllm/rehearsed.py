"""Rehearsals of a vLLM in this process that find something, or that cannot be done, and one of two ranks.

Usage: ``python -m tests.vllm.rehearsed [--ranks]``.
"""

from __future__ import annotations

import gc
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef

from ckpt_transport_vllm import rehearsal, rehearsed_processing
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.processing import Processing
from ckpt_transport_vllm.quiesce import WorkerGate
from ckpt_transport_vllm.recorded_model import ApplyMode
from ckpt_transport_vllm.rehearsed_processing import rehearse_processing
from ckpt_transport_vllm.shadow_module import ShadowModule
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import architectures as architectures
from tests.vllm.forked import output_of
from tests.vllm.in_process import Engine, reference, reference_of, warm_up
from tests.vllm.recorded import BUCKET_BYTES, Updated, _compare, specs_of
from tests.vllm.source import Source
from tests.vllm.warmed import loader_calls

MODULE = "tests.vllm.rehearsed"
NORM = "model.norm"
PROCESSED = "model.layers.0.self_attn.o_proj"
RANKS = 2


class Rehearsed(Updated):
    """A vLLM in this process, which gets one engine of ours after the other."""

    def __init__(self, folder: Path) -> None:
        self.directories = [folder / f"moe-{seed}" for seed in (1, 2)]
        self.expected = [reference_of(MODULE, directory) for directory in self.directories]
        self.specs = specs_of(self.directories[0])
        super().__init__(self.directories[0])
        self.calls = loader_calls(self)
        self._serves = 0

    def renew(self, *, verify_always: bool = False) -> None:
        """Take an engine of ours that knows nothing yet."""
        worker: Any = self.served.llm.llm_engine.model_executor.driver_worker.worker
        target = self.engine._find_target()
        self.engine = VllmEngine(
            lambda: target, WorkerGate(worker), lambda: None, "", "vLLM", verify_always=verify_always
        )
        self.calls.clear()

    def warm_up(self, most_steps: int | None = None) -> list[str]:
        """What each step says; after so many of them an update comes."""
        steps, said = self.engine.warm_up(self.specs), list[str]()
        for step in steps:
            said.append(step)
            if len(said) == most_steps:
                break
        steps.close()
        _compare(self.served.answers(), self.expected[self._serves])
        self.calls.clear()
        return said

    def bring_other(self) -> str:
        """Bring the version that is not served; what the engine says of that."""
        self._serves = 1 - self._serves
        told = self.update(self.directories[self._serves], self.specs, BUCKET_BYTES)
        _compare(self.served.answers(), self.expected[self._serves])
        return told

    @property
    def given(self) -> set[str]:
        """The names of tensors that the loader was given."""
        return {name for pairs in self.calls for name, _ in pairs}


def check(folder: Path) -> None:
    """All of it with one vLLM."""
    updated = Rehearsed(folder)
    everything = {spec.name for spec in updated.specs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "free_on", lambda device: 0)
        said = updated.warm_up()
        assert "left to the first update: too little memory is free" in said[-1], said
        assert "found to be the same" in updated.bring_other()
        assert updated.given == everything
    print("too little memory: compared at the first update", flush=True)
    updated.renew()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "TOGETHER_BYTES", 1)
        updated.warm_up(9)
        recorded = updated.engine._loading.recorded
        assert recorded is not None
        proved = {recorded.layout.sources[each].name for name in recorded.proved for each in recorded.sources_of[name]}
        assert proved
        assert "found to be the same" in updated.bring_other()
        assert updated.given == everything - proved
    print("an update that comes meanwhile: compares the rest", flush=True)
    updated.renew(verify_always=True)
    assert updated.warm_up() == ["recorded the loader"]
    assert "found to be the same" in updated.bring_other()
    assert updated.given == everything
    print("every replay is compared: nothing is rehearsed", flush=True)
    check_processing(updated)
    check_kept(updated)
    check_memory(updated)
    plant(updated, negates_what_is_not_zero)
    said = updated.warm_up()
    assert "; 1 are not, which the loader loads;" in said[-1], said
    told = updated.update(updated.directories[0], updated.specs, BUCKET_BYTES)
    assert "as it was rehearsed" in told, told
    assert "1 modules by the loader" in told, told
    assert updated.given == {f"{NORM}.weight"}
    recorded = updated.engine._loading.recorded
    assert recorded is not None
    assert [name for name, mode in recorded.modes.items() if mode is ApplyMode.LOADER] == [NORM]
    served = updated.engine._find_target().model.get_parameter(f"{NORM}.weight")
    stored = load_file(next(updated.directories[0].glob("*.safetensors")))[f"{NORM}.weight"]
    assert torch.equal(served, -stored), f"{served[:4]} is not {-stored[:4]}"
    print("a replay that differs: left to the loader", flush=True)


def negates_what_is_not_zero(param: torch.Tensor, loaded: torch.Tensor) -> None:
    """Loads, and looks at values where torch does not see it: when it is recorded they are zero."""
    changes = loaded.view(torch.int16).numpy().any()
    param.data.copy_(-loaded if changes else loaded)


def plant(updated: Updated, load: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Have one parameter loaded by a function of ours."""
    from vllm.model_executor.model_loader.reload import layerwise

    module = updated.engine._find_target().model.get_submodule(NORM)
    weight: Any = layerwise.get_layerwise_info(module).restore_metadata[0]["weight"]
    weight.weight_loader = load


def check_processing(updated: Rehearsed) -> None:
    """Plant processing that does what others could notice: it is stopped or noticed, and left to the first update."""
    model = updated.engine._find_target().model
    layer: Any = model.get_submodule(PROCESSED)
    method, other = layer.quant_method, model.get_parameter("model.embed_tokens.weight")
    kind, own, values = type(method), dict(vars(method)), other.clone()
    for planted, why in PLANTED.items():
        updated.renew()
        method.shared, method.weight = {"seen": [1]}, other
        method.__class__ = type("Planted", (kind,), {"process_weights_after_loading": after(kind, planted)})
        if planted is processes_with_another:
            method.another = model.get_submodule(NORM)
        said = updated.warm_up()
        assert f"1 x its processing is left to the first update: {why}" in said[-1], said
        assert "can be staged" not in said[-1], said
        assert method.shared == {"seen": [1]}
        assert torch.equal(other, values)
        method.__class__ = kind
        vars(method).clear()
        vars(method).update(own)
        assert "as it was rehearsed" in updated.bring_other()
        values = other.clone()
    print("processing that changes what is shared: left to the first update", flush=True)


def check_kept(updated: Rehearsed) -> None:
    """Plant a method whose kernel keeps the parameter that it was made with: nothing can be written in place there."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    def keeps(method: Any, layer: Any) -> None:
        method.kept = layer.weight

    layer: Any = updated.engine._find_target().model.get_submodule(NORM)
    layer.quant_method = type(
        "Keeping",
        (QuantizeMethodBase,),
        {"process_weights_after_loading": keeps, "create_weights": None, "apply": None},
    )()
    seen = rehearse_processing(updated.engine._find_target(), layer, {})
    assert seen == Processing("its kernels hold on to weight", "its processing makes kept")
    updated.renew()
    said = updated.warm_up()
    assert "1 x its processing is left to the first update: " in said[-1], said
    assert "can be staged" not in said[-1], said
    del layer.quant_method
    updated.renew()
    print("processing whose kernel keeps a parameter: left to the first update", flush=True)


def check_memory(updated: Rehearsed) -> None:
    """What a rehearsal has taken is free at its end, without a collection; and shadows go that nobody has any more."""
    taken = list[Any]()
    stage, weak = rehearsed_processing._stage, cast(Any, StorageWeakRef)

    def noted(*arguments: Any) -> list[torch.Tensor]:
        memory = stage(*arguments)
        taken.extend(weak(tensor.untyped_storage()) for tensor in memory)
        return memory

    gc.collect()
    gc.disable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsed_processing, "_stage", noted)
        updated.warm_up()
    gc.enable()
    assert taken
    assert all(each.expired() for each in taken)
    layer = updated.engine._find_target().model.get_submodule(PROCESSED)
    module = weakref.ref(ShadowModule(layer, {}).module)
    gc.collect()
    assert module() is None
    updated.renew()
    print("memory of a rehearsal: free at its end", flush=True)


def after(kind: Any, planted: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """The processing of a method, and what is planted behind it."""

    def process(method: Any, layer: Any) -> None:
        kind.process_weights_after_loading(method, layer)
        planted(method, layer)

    return process


def changes_an_object(method: Any, layer: Any) -> None:
    """Processing that changes what it may share."""
    method.shared["seen"].append(2)


def writes_elsewhere(method: Any, layer: Any) -> None:
    """Processing that writes to another module's weight."""
    method.weight.data.fill_(0)


def writes_past_torch(method: Any, layer: Any) -> None:
    """Processing that writes to another module's weight where torch does not see it."""
    method.weight.detach().view(torch.int16).numpy()[:] = 0


def moves_a_weight(method: Any, layer: Any) -> None:
    """Processing that gives another module's weight other memory."""
    method.weight.data = method.weight.data.clone()


def meets_others(method: Any, layer: Any) -> None:
    """Processing in which ranks wait for each other."""
    torch.distributed.all_reduce(torch.zeros(1))


def processes_with_another(method: Any, layer: Any) -> None:
    """Processing of a method that refers to another module."""


PLANTED: dict[Callable[[Any, Any], None], str] = {
    changes_an_object: "SharedChangeError: its processing changes it.quant_method.shared['seen'].1",
    writes_elsewhere: "SeenByPassesError: calls aten.fill_.Scalar on memory that may be the model's",
    writes_past_torch: "SeenByPassesError: calls numpy on memory that may be the model's",
    moves_a_weight: "SeenByPassesError: calls __set__ on memory that may be the model's",
    meets_others: "SeenByPassesError: calls c10d.allreduce_.default, for which ranks wait for each other",
    processes_with_another: "NotDetachableError: it.quant_method.another is a module that is elsewhere in the model",
}


class Ranks(Engine):
    """A vLLM of several ranks."""

    def answers(self) -> Any:
        self.llm.reset_prefix_cache()
        prompt = [{"prompt_token_ids": [1, 22, 133, 44, 5]}]
        (answer,) = self.llm.generate(prompt, self._sampling, use_tqdm=False)
        return list(answer.outputs[0].token_ids), self.llm.collective_rpc("ckpt_transport_checksums")


def check_ranks(folder: Path, family: str) -> None:
    """Two ranks warm up, each by itself, and their first update is what a fresh start loads, without a loader."""
    engine = Ranks(folder / f"{family}-2")
    second = engine.answers()
    directories = {f"v{seed}": folder / f"{family}-{seed}" for seed in (1, 2)}
    sinks = [str(each["address"]) for each in engine.llm.collective_rpc("ckpt_transport_attach")]
    warm_up(engine.llm, sinks)
    with Source({"transport": "gloo"}, directories, *sinks) as source:
        told = [*source.update("v1"), *source.update("v2")]
    assert len(told) == 2 * RANKS
    assert all(each.startswith("replayed in") for each in told), told
    found = engine.answers()
    assert found == second
    print(f"{family}: {RANKS} ranks: {told[0]}", flush=True)


def main(
    ranks: Annotated[bool, typer.Option("--ranks", help="Check two ranks.")] = False,
    family: Annotated[str, typer.Option(help="Of their model.")] = "qwen3",
    from_directory: Annotated[Path | None, typer.Option("--reference", help="Only say what this one answers.")] = None,
    only: Annotated[Path | None, typer.Option(help="Check with checkpoints from this folder.")] = None,
) -> None:
    """Check what rehearsals find."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if from_directory is not None:
        reference(from_directory)
        return
    if only is not None and ranks:
        os.environ["VLLM_ARGUMENTS"] = f'{{"tensor_parallel_size": {RANKS}}}'
        check_ranks(only, family)
        return
    if only is not None:
        check(only)
        return
    family = family if ranks else "moe"
    with tempfile.TemporaryDirectory() as folder:
        for seed in (1, 2):
            tiny_models.write(Path(folder) / f"{family}-{seed}", seed, family)
        environment = dict(os.environ)
        if ranks:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(RANKS)))
        options = ["--ranks"] if ranks else []
        print(output_of(MODULE, "--only", folder, "--family", family, *options, environment=environment))


if __name__ == "__main__":
    typer.run(main)
