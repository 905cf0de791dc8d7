"""A vLLM in this process takes a delta and takes it back; both ways it answers as after a full update of all bytes.

On CPUs vLLM packs the weights of linear layers, unless it was built without oneDNN. With ``--packed`` it packs those
whose names end so, and these come whole beside the delta. With ``--fp8`` both versions are made of BF16 weights in a
mode of ``fp8_checkpoints.py``, as with a scale for each block.

Usage: ``python -m tests.vllm.deltas [--family NAME] [--packed ENDING] [--fp8 MODE]``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file

from ckpt_transport.engine import digest_of_elements
from tests.deltas import delta_of, exchanged, staged
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import cpu_fp8
from tests.vllm.fp8_checkpoints import FILE, write_quantized
from tests.vllm.in_process import Answers
from tests.vllm.packed import NOTHING, Products, pack_only, products_of
from tests.vllm.recorded import BUCKET_BYTES, Updated, specs_of
from tests.vllm.sparse import changed

WIDTH = 256
"""Of models: of whole blocks."""


def check(updated: Updated, expected: tuple[Answers, Products]) -> None:
    """It answers so, and packed weights are these."""
    assert updated.served.answers() == expected[0]
    found = products_of(updated.engine._find_target().model)
    assert found.keys() == expected[1].keys()
    assert all(torch.equal(found[name], each) for name, each in expected[1].items())


def main(
    family: Annotated[str, typer.Option(help="Of the model.")] = "qwen3",
    packed: Annotated[str, typer.Option(help="Let vLLM pack linear layers whose names end so.")] = NOTHING,
    fp8: Annotated[str, typer.Option(help="Serve FP8 of this mode.")] = "",
) -> None:
    """Check a delta."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    pack_only(packed)
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        tiny_models.write(one, 1, family, hidden=WIDTH)
        old, new = changed(one, other)
        if fp8:
            cpu_fp8.register()
            one, other = (write_quantized(each, each.with_suffix(".fp8"), fp8) for each in (one, other))
            old, new = (load_file(each / FILE) for each in (one, other))
        specs = specs_of(one)
        updated = Updated(one)
        for directory in (one, other):
            updated.update(directory, specs, BUCKET_BYTES)
        engine = updated.engine
        model = engine._find_target().model
        after = updated.served.answers(), products_of(model)
        updated.update(one, specs, BUCKET_BYTES)
        before = updated.served.answers(), products_of(model)
        assert before[0] != after[0]
        whole = engine.served_elements().whole_names
        taking = staged(engine, *delta_of("one", old, new, whole=whole))
        check(updated, before)
        for expected in (after, before, after):
            exchanged(taking)
            check(updated, expected)
            taking.digest_left = digest_of_elements(engine.served_elements())
            engine.begin()
            taking.restore()
        print(f"{taking.apply_summary}, and taken back", flush=True)


if __name__ == "__main__":
    typer.run(main)
