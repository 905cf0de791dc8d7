"""A vLLM in this process takes a delta and takes it back; both ways it answers as after a full update of all bytes.

Weights must be where kernels read them. On CPUs vLLM packs them, unless it was built without oneDNN: that is what is
checked here, and with ``--packed`` that a delta is refused where they are packed. With ``--fp8`` both versions are made
of BF16 weights, with a scale for each block.

Usage: ``python -m tests.vllm.deltas [--family NAME] [--packed] [--fp8]``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file

from ckpt_transport import DeltaRefusedError
from ckpt_transport.engine import digest_of_served
from tests.deltas import delta_of, exchanged, staged
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import cpu_fp8
from tests.vllm.fp8_checkpoints import FILE, write_quantized
from tests.vllm.recorded import BUCKET_BYTES, Updated, specs_of
from tests.vllm.sparse import changed

WIDTH = 256
"""Of models: of whole blocks."""


def main(
    family: Annotated[str, typer.Option(help="Of the model.")] = "qwen3",
    packed: Annotated[bool, typer.Option(help="Let vLLM pack weights.")] = False,
    fp8: Annotated[bool, typer.Option(help="Serve FP8.")] = False,
) -> None:
    """Check a delta."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import _custom_ops

    if not packed:
        _custom_ops._supports_onednn = False
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        tiny_models.write(one, 1, family, hidden=WIDTH)
        old, new = changed(one, other)
        if fp8:
            cpu_fp8.register()
            one, other = (write_quantized(each, each.with_suffix(".fp8"), "block") for each in (one, other))
            old, new = (load_file(each / FILE) for each in (one, other))
        specs = specs_of(one)
        updated = Updated(one)
        for directory in (one, other):
            updated.update(directory, specs, BUCKET_BYTES)
        after = updated.served.answers()
        updated.update(one, specs, BUCKET_BYTES)
        before = updated.served.answers()
        assert before[1] != after[1]
        try:
            engine = updated.engine
            engine.served_elements()
        except DeltaRefusedError as error:
            print(f"refused: {error}", flush=True)
            return
        taking = staged(engine, *delta_of("one", old, new))
        assert updated.served.answers() == before, "something was changed while the delta was staged"
        for expected in (after, before):
            exchanged(taking)
            assert updated.served.answers() == expected
            taking.digest_left = digest_of_served(engine.served_elements().tensors)
            taking.restore()
        print(f"{taking.apply_summary}, and taken back", flush=True)


if __name__ == "__main__":
    typer.run(main)
