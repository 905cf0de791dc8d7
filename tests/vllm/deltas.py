"""A vLLM in this process takes a delta and takes it back; both ways it answers as after a full update of all bytes.

Weights must be where kernels read them. On CPUs vLLM packs them, unless it was built without oneDNN: that is what is
checked here, and with ``--packed`` that a delta is refused where they are packed.

Usage: ``python -m tests.vllm.deltas [--family NAME] [--packed]``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ckpt_transport import DeltaRefusedError
from ckpt_transport.engine import digest_of_served
from tests.deltas import delta_of, exchanged, staged
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm.recorded import BUCKET_BYTES, Updated, specs_of
from tests.vllm.sparse import changed


def main(
    family: Annotated[str, typer.Option(help="Of the model.")] = "qwen3",
    packed: Annotated[bool, typer.Option(help="Let vLLM pack weights.")] = False,
) -> None:
    """Check a delta."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import _custom_ops

    if not packed:
        _custom_ops._supports_onednn = False
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        tiny_models.write(one, 1, family)
        old, new = changed(one, other)
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
