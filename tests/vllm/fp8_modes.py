"""Every way to serve FP8, in a vLLM of this process: updated, it is what a fresh one would be.

For each mode and model an engine is started from version 1 and updated to version 2 and back, ten times in all: from
files as they are and, where the checkpoint is FP8, also from BF16 files that are quantized on the way. Every parameter
and scale is compared with an engine that was started so, greedy tokens too, and that storage stays where it is. Weights
of the wrong kind are refused, and an update that fails half-way is repaired by the next one.

Usage: ``python -m tests.vllm.fp8_modes``, on a CPU or a GPU; it prints a table and ends with an error if a mode fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ckpt_transport import ask_version
from ckpt_transport_vllm.server import EXTENSION
from tests.support.tiny_models import write
from tests.support.vllm_server import CACHE_BYTES, ENVIRONMENT
from tests.vllm.forked import output_of
from tests.vllm.fp8_checkpoints import CONFIGS, spoil, write_quantized
from tests.vllm.in_process import MARK, PROMPT, marked, warm_up
from tests.vllm.source import Source

MODULE = "tests.vllm.fp8_modes"
SMALL_BUCKET = "64KiB"
WIDTHS = {1: 256, 2: 512}
"""Of models, by ranks: each rank's part of every matrix is a multiple of a block."""
MEETING = {"online tensor"}
"""Ranks wait for each other there while they load, so one that is interrupted may leave another waiting for ever."""
TIMES = 5
"""Rounds, each there and back: ten updates in a row at least."""


@dataclass(frozen=True)
class Mode:
    """Attributes:
    checkpoint: a key of CONFIGS; empty for BF16.
    arguments: of vLLM.
    """

    checkpoint: str
    arguments: dict[str, Any]


MODES = {
    **{name: Mode(name, {}) for name in CONFIGS},
    "static": Mode("static", {"kv_cache_dtype": "fp8"}),
    "online fp8": Mode("", {"quantization": "fp8"}),
    "online tensor": Mode("", {"quantization": "fp8_per_tensor"}),
    "online block": Mode("", {"quantization": "fp8_per_block"}),
    "online channel": Mode("", {"quantization": "fp8_per_channel"}),
}


def not_served(mode: str, family: str) -> str:
    """Why the vLLM that is here does not serve this; empty when it does."""
    import vllm

    if mode == "online fp8" and tuple(map(int, vllm.__version__.split(".")[:2])) >= (0, 32):
        return "vLLM calls it fp8_per_tensor"
    if (mode, family) == ("online channel", "moe") and not torch.cuda.is_available():
        return "vLLM has no kernel for it on CPUs"
    return ""


@dataclass(frozen=True)
class Case:
    """One engine to check, with checkpoints below ``folder``.

    Attributes:
        bare: it starts from a configuration alone, with random weights, and has no files to compare versions with.
        warmed: it warms up, so that its first update needs no loader.
    """

    folder: Path
    mode: str
    family: str
    ranks: int
    bare: bool = False
    warmed: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the checkpoint is."""
        return bool(MODES[self.mode].checkpoint)

    def plain(self, seed: int) -> Path:
        """The BF16 checkpoint."""
        directory = self.folder / f"{self.family}-{self.ranks}-{seed}"
        return directory if directory.exists() else write(directory, seed, self.family, hidden=WIDTHS[self.ranks])

    def served(self, seed: int) -> Path:
        """The checkpoint that the engine starts from."""
        if not self.quantized:
            return self.plain(seed)
        directory = self.folder / f"{self.family}-{self.mode}-{self.ranks}-{seed}"
        if directory.exists():
            return directory
        return write_quantized(self.plain(seed), directory, MODES[self.mode].checkpoint)

    def started_from(self, seed: int) -> Path:
        """The directory that the engine is given."""
        if not self.bare:
            return self.served(seed)
        directory = self.folder / "bare"
        shutil.copytree(
            self.served(seed), directory, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
        )
        return directory


@dataclass(frozen=True)
class State:
    """What an engine holds and says.

    Attributes:
        tokens: greedy ones.
        checksums: of parameters and buffers, and of what kernels refer to besides; by rank.
    """

    tokens: list[int]
    checksums: list[dict[str, str]]

    def differing(self, expected: State) -> list[str]:
        """What is not as expected. A reload of vLLM 0.25 makes some buffers persistent that were not."""
        names = [
            name
            for mine, theirs in zip(self.checksums, expected.checksums, strict=True)
            for name in theirs
            if mine.get(name) != theirs[name]
        ]
        return names + (["tokens"] if self.tokens != expected.tokens else [])


class Engine:
    """A vLLM, in this process unless it has several ranks."""

    def __init__(self, case: Case, seed: int) -> None:
        import vllm

        arguments: dict[str, Any] = json.loads(os.environ.get("VLLM_ARGUMENTS", "{}"))
        arguments |= MODES[case.mode].arguments
        if case.bare:
            arguments["load_format"] = "dummy"
        if case.ranks > 1:
            arguments["tensor_parallel_size"] = case.ranks
        self._sampling = vllm.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
        self._llm: Any = vllm.LLM(
            str(case.started_from(seed)),
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=256,
            max_num_seqs=4,
            kv_cache_memory_bytes=CACHE_BYTES,
            dtype="bfloat16",
            worker_extension_cls=EXTENSION,
            **arguments,
        )

    def state(self) -> State:
        self._llm.reset_prefix_cache()
        (answer,) = self._llm.generate([{"prompt_token_ids": PROMPT}], self._sampling, use_tqdm=False)
        checksums: list[dict[str, str]] = self._llm.collective_rpc("ckpt_transport_checksums")
        assert not any("error" in found for found in checksums), checksums
        if len(checksums) == 1:
            checksums = [checksums[0] | self._llm.collective_rpc(_referred)[0]]
        return State(list(answer.outputs[0].token_ids), checksums)

    def sinks(self) -> list[str]:
        attached = self._llm.collective_rpc("ckpt_transport_attach")
        assert not any(each["error"] for each in attached), attached
        return [str(each["address"]) for each in attached]

    def warm_up(self, sinks: list[str]) -> None:
        warm_up(self._llm, sinks)

    def pointers(self) -> dict[str, int]:
        """Where parameters and buffers are; of an engine of one rank."""
        found: list[dict[str, int]] = self._llm.collective_rpc(_pointers)
        return found[0]


def _pointers(worker: Any) -> dict[str, int]:
    """Of parameters and buffers, and of what kernels refer to besides."""
    model = worker.model_runner.get_model()
    found = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        config = getattr(getattr(module, "quant_method", None), "moe_quant_config", None)
        owners = {"": module if "attn" in name else None, "w1": getattr(config, "_w1", None)}
        owners["w2"] = getattr(config, "_w2", None)
        for part, owner in owners.items():
            kept = {} if owner is None else vars(owner)
            found |= {f"{name}.{part}.{k}": v.data_ptr() for k, v in kept.items() if isinstance(v, torch.Tensor)}
    return found


def _referred(worker: Any) -> dict[str, str]:
    """Scales that attention keeps as numbers, and those that the kernels of experts refer to."""
    found: dict[str, str] = {}
    for name, module in worker.model_runner.get_model().named_modules():
        kept = {key: value for key, value in vars(module).items() if key.endswith(("_scale_float", "_scale_cpu"))}
        found |= {f"{name}.{key}": str(float(value)) for key, value in kept.items() if value is not None}
        config = getattr(getattr(module, "quant_method", None), "moe_quant_config", None)
        for key in ("w1_scale", "w2_scale", "a1_scale", "a2_scale"):
            scale = getattr(config, key, None)
            if isinstance(scale, torch.Tensor):
                found[f"{name}.{key}"] = hashlib.sha256(scale.detach().float().cpu().numpy().tobytes()).hexdigest()
    return found


def check(case: Case, transport: str) -> str:
    """Check one engine; returns what was seen, for a table."""
    second = _reference(case, 2)
    engine = Engine(case, 1)
    first = _reference(case, 1) if case.bare else engine.state()
    pointers = engine.pointers() if case.ranks == 1 else {}
    assert first.differing(second), "two versions were meant to differ"
    directories = {"v1": case.served(1), "v2": case.served(2)}
    targets: dict[str, Path] = {}
    scale = ""
    if case.quantized:
        directories |= {"plain": case.plain(2), "missing": case.folder / "missing", "wrong": case.folder / "wrong"}
        scale = spoil(case.served(2), directories["missing"], None)
        spoil(case.served(2), directories["wrong"], (3, 5))
        if case.mode != "static":
            directories |= {"v1 from BF16": case.plain(1), "v2 from BF16": case.plain(2)}
            targets = dict.fromkeys(("v1 from BF16", "v2 from BF16"), case.served(1))
    else:
        other = Case(case.folder, "block", case.family, case.ranks)
        directories["FP8"] = other.served(2)
    told: list[str] = []
    settings = {"transport": transport, "bucket_bytes": SMALL_BUCKET}
    sinks = engine.sinks()
    if case.warmed:
        engine.warm_up(sinks)
    with Source(settings, directories, *sinks, targets=targets) as source:

        def bring(version: str, expected: State) -> None:
            told.extend(source.update(version))
            found = engine.state()
            assert not found.differing(expected), f"{found.differing(expected)[:5]} differ after {version}"
            now = engine.pointers() if pointers else {}
            moved = [name for name, address in pointers.items() if now.get(name) != address]
            assert not moved, f"the storage of {moved[:5]} has moved"

        for _ in range(TIMES):
            for version, expected in (("v2", second), ("v1", first)):
                bring(version, expected)
                if targets:
                    other_seed = {"v2": "v1", "v1": "v2"}[version]
                    bring(f"{other_seed} from BF16", first if other_seed == "v1" else second)
                    bring(f"{version} from BF16", expected)
        missing, wrong = f"lacks tensor {scale}", f"{scale} is F32 [3, 5]"
        if case.bare:
            missing, wrong = f"{scale} is missing", f"{scale} is of shape [3, 5]"
        refusals = {"plain": "is not quantized", "missing": missing, "wrong": wrong}
        for version, said in (refusals if case.quantized else {"FP8": "is FP8"}).items():
            refused = source.refusal(version)
            assert said in refused, refused
            assert "changed nothing" in refused, refused
            assert not engine.state().differing(first), f"{version} was refused and has changed something"
        if case.ranks == 1 or case.mode not in MEETING:
            source.fail_half_way("v2")
            assert any(ask_version(sink).tainted for sink in sinks)
            bring("v2", second)
    assert case.warmed is not any("loaded by the loader" in each for each in told[: case.ranks]), told[: case.ranks]
    updates = len(told) // case.ranks
    replayed = sum(each.startswith("replayed in") for each in told) // case.ranks
    compared = f"{len(second.checksums[0])} checksums, {len(pointers)} addresses"
    return f"{updates} updates, {replayed} of them replayed, {compared}"


def _reference(case: Case, seed: int) -> State:
    said = output_of(MODULE, *_options(replace(case, bare=False, warmed=False)), f"--reference={seed}")
    return State(*json.loads(marked(said)))


def _options(case: Case) -> list[str]:
    options = [f"--folder={case.folder}", f"--mode={case.mode}", f"--family={case.family}", f"--ranks={case.ranks}"]
    return [*options, *(["--bare"] if case.bare else []), *(["--warmed"] if case.warmed else [])]


def with_plugin(folder: Path) -> dict[str, str]:
    """An environment in which vLLM finds :mod:`tests.vllm.cpu_fp8` as a plugin, in all of its processes."""
    described = folder / "plugin" / "cpu_fp8-0.dist-info"
    described.mkdir(parents=True, exist_ok=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-fp8\nVersion: 0\n")
    (described / "entry_points.txt").write_text("[vllm.general_plugins]\ncpu_fp8 = tests.vllm.cpu_fp8:register\n")
    path = os.pathsep.join([str(described.parent), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path.rstrip(os.pathsep)}


def run(case: Case, transport: str) -> str:
    """Check one engine in a process of its own; returns what was seen.

    Raises:
        subprocess.CalledProcessError: something is not as it should be.
    """
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | with_plugin(case.folder)
    if case.ranks > 1 and not torch.cuda.is_available():
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(case.ranks)))
    return marked(output_of(MODULE, *_options(case), f"--transport={transport}", environment=environment))


def main(
    mode: Annotated[list[str] | None, typer.Option(help="By default all.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="By default qwen3 and moe.")] = None,
    ranks: Annotated[int, typer.Option(help="Of a tensor-parallel engine.")] = 1,
    bare: Annotated[bool, typer.Option("--bare", help="Start without weights.")] = False,
    warmed: Annotated[bool, typer.Option("--warmed", help="Warm up before the first update.")] = False,
    transport: Annotated[str, typer.Option(help="To update over.")] = "shm",
    folder: Annotated[Path | None, typer.Option(help="Check one in this process, with checkpoints here.")] = None,
    reference: Annotated[int | None, typer.Option(help="Only say what an engine of this seed holds.")] = None,
) -> None:
    """Check all modes, and print a table. VLLM_ARGUMENTS may hold further arguments of LLM as JSON."""
    modes, families = mode or list(MODES), family or ["qwen3", "moe"]
    if folder is not None:
        case = Case(folder, modes[0], families[0], ranks, bare, warmed)
        if reference is not None:
            state = Engine(case, reference).state()
            print(MARK + json.dumps([state.tokens, state.checksums]), flush=True)
        else:
            print(MARK + check(case, transport), flush=True)
        return
    import vllm

    rows, failed = [], False
    for each in modes:
        for kind in families:
            if why := not_served(each, kind):
                rows.append(f"| {each} | {kind} | {ranks} | not served: {why} |")
                continue
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    seen = run(Case(Path(scratch), each, kind, ranks, bare, warmed), transport)
                except subprocess.CalledProcessError as error:
                    seen, failed = f"FAILED with exit code {error.returncode}", True
            rows.append(f"| {each} | {kind} | {ranks} | {seen} |")
    print(f"vLLM {vllm.__version__}, torch {torch.__version__}, over {transport}", flush=True)
    print("\n".join(["| mode | model | ranks | seen |", "| --- | --- | --- | --- |", *rows]))
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
