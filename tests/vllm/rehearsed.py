"""Rehearsals of a vLLM in this process that find something, or that cannot be done, and one of two ranks.

Usage: ``python -m tests.vllm.rehearsed [--ranks]``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from safetensors.torch import load_file

from ckpt_transport_vllm import rehearsal
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.quiesce import WorkerGate
from ckpt_transport_vllm.recorded_model import ApplyMode
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
    updated.renew()
    plant(updated, negates_what_is_not_zero)
    said = updated.warm_up()
    assert said[-1].endswith("; 1 are not, which the loader loads"), said
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
    assert all("as it was rehearsed" in each for each in told[:RANKS]), told
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
