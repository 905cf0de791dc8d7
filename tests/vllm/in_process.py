"""The same promises for a vLLM inside this process, for machines where no server can be started, as a borrowed GPU.

The source is another process, as in life.

Usage: ``python -m tests.vllm.in_process``. It prints a line for each model and ends with an error if one differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ckpt_transport import ask_version
from ckpt_transport_vllm.server import EXTENSION
from tests.support.vllm_server import CACHE_BYTES, ENVIRONMENT
from tests.vllm.forked import output_of
from tests.vllm.source import Source

MARK = "seen: "
PROMPT = [1, 22, 133, 44, 5]
WARM_UP_SECONDS = 240
SMALL_BUCKET = "64KiB"
"""Less than a module, where bytes pass through slots."""

Answers = tuple[list[int], dict[str, str]]
"""Greedy tokens, and checksums."""


class Engine:
    """A vLLM in this process."""

    def __init__(self, directory: Path) -> None:
        import vllm

        arguments: dict[str, Any] = json.loads(os.environ.get("VLLM_ARGUMENTS", "{}"))
        self._sampling = vllm.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
        self.llm: Any = vllm.LLM(
            str(directory),
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=256,
            max_num_seqs=4,
            kv_cache_memory_bytes=CACHE_BYTES,
            dtype="bfloat16",
            worker_extension_cls=EXTENSION,
            **arguments,
        )

    def answers(self) -> Answers:
        """Greedy tokens, and checksums."""
        self.llm.reset_prefix_cache()
        (answer,) = self.llm.generate([{"prompt_token_ids": PROMPT}], self._sampling, use_tqdm=False)
        (checksums,) = self.llm.collective_rpc("ckpt_transport_checksums")
        return list(answer.outputs[0].token_ids), checksums

    def sink(self) -> str:
        (attached,) = self.llm.collective_rpc("ckpt_transport_attach")
        assert not attached["error"], attached["error"]
        return str(attached["address"])


def warm_up(llm: Any, sinks: Sequence[str]) -> None:
    """Have attached workers warm up, as an operator has it done, and see that all have rehearsed."""
    assert not any(each["error"] for each in llm.collective_rpc("ckpt_transport_warm_up"))
    deadline = time.monotonic() + WARM_UP_SECONDS
    for sink in sinks:
        while not (said := ask_version(sink).warm_up).startswith(("warmed up", "could not")):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        assert said.startswith("warmed up: recorded the loader"), said
        assert "rehearsed its replay: " in said, said


def reference(directory: Path) -> None:
    """Print what an engine says that starts from ``directory``."""
    print(MARK + json.dumps(Engine(directory).answers()), flush=True)


def reference_of(module: str, directory: Path) -> Answers:
    """What an engine says that starts from ``directory``, in a process that runs ``module``."""
    tokens, checksums = json.loads(marked(output_of(module, "--reference", str(directory))))
    return tokens, checksums


def marked(output: str) -> str:
    """What was said for the process that asked, among what vLLM's processes say."""
    return next(line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK))


def check(folder: Path, family: str, transports: list[str]) -> None:
    """Update an engine there and back, fail half-way, and repair it."""
    directories = {f"v{seed}": folder / f"{family}-{seed}" for seed in (1, 2)}
    second = reference_of("tests.vllm.in_process", directories["v2"])
    engine = Engine(directories["v1"])
    first = engine.answers()
    assert first[0] != second[0]
    sink = engine.sink()
    for transport in transports:
        with Source({"transport": transport, "bucket_bytes": SMALL_BUCKET}, directories, sink) as source:
            for version, expected in (("v2", second), ("v1", first)):
                source.update(version)
                compare(engine.answers(), expected)
            source.fail_half_way("v2")
            assert ask_version(sink).tainted
            source.update("v2")
            compare(engine.answers(), second)
            source.update("v1")
    how = ", ".join(transports)
    print(f"{family} over {how}: {len(first[1])} checksums and all tokens as from the files, also after a failure")


def compare(found: Answers, expected: Answers) -> None:
    """Tokens and checksums. A reload of vLLM 0.25 makes some buffers persistent that were not: these are left out."""
    differing = [name for name in expected[1] if found[1].get(name) != expected[1][name]]
    assert not differing, f"{differing[:5]} differ"
    assert found[0] == expected[0], f"{found[0]} is not {expected[0]}"


def main(
    family: Annotated[list[str] | None, typer.Option(help="Of models; by default all.")] = None,
    from_directory: Annotated[Path | None, typer.Option("--reference", help="Only say what this one answers.")] = None,
    transport: Annotated[list[str] | None, typer.Option(help="To update over; by default shm and gloo.")] = None,
    only: Annotated[Path | None, typer.Option(help="Check one family, with checkpoints from this folder.")] = None,
) -> None:
    """Check updates of a vLLM in this process, or with VLLM_ENABLE_V1_MULTIPROCESSING=1 in a child of it.

    VLLM_ARGUMENTS may hold further arguments of LLM as JSON.
    """
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    transports = transport or ["shm", "gloo"]
    families = family or ["qwen3", "tied", "moe", "neox"]
    if from_directory is not None:
        reference(from_directory)
    elif only is not None:
        check(only, families[0], transports)
    else:
        import vllm

        print(f"vLLM {vllm.__version__}")
        with tempfile.TemporaryDirectory() as folder:
            names = [f"--family={name}" for name in families]
            write = [sys.executable, "-m", "tests.support.tiny_models", folder, *names, "--seed=1", "--seed=2"]
            subprocess.run(write, check=True)
            for name in families:
                again = [sys.executable, "-m", "tests.vllm.in_process", "--only", folder, "--family", name]
                subprocess.run([*again, *(f"--transport={each}" for each in transports)], check=True)


if __name__ == "__main__":
    typer.run(main)
