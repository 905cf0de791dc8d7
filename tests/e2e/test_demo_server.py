"""The demonstration's server on its own: what it computes, what it refuses, what it says when a worker dies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.llama import checkpoint
from examples.llama.engine import Engine
from examples.llama.messages import Generate, Generated
from examples.llama.model import ModelConfig
from examples.llama.parallel import TensorParallel
from examples.llama.service import Service
from tests.support.serving import ServeError

SMALL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
PROMPT = (1, 2, 3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "v1"
    checkpoint.write(directory, SMALL, seed=1)
    return directory


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[Service]:
    service = Service(directory, "v1", directory.parent / "server.log")
    try:
        service.wait()
        yield service
    finally:
        service.close()


def unsplit(directory: Path, *requests: Generate) -> list[Generated]:
    """What an engine of one worker answers, all requests side by side."""
    engine = Engine(directory, TensorParallel())
    for number, request in enumerate(requests):
        assert engine.admit(number, request) is None
    answers: dict[int, Generated] = {}
    while engine.busy:
        answers.update(engine.step())
    return [answers[number] for number in range(len(requests))]


def test_given_two_workers_then_they_give_the_tokens_of_one(service: Service, directory: Path) -> None:
    """Given the same checkpoint, then a model split over two workers continues a prompt as the whole model does."""
    (expected,) = unsplit(directory, Generate(PROMPT, 12))
    assert service.generate(PROMPT, 12).tokens == expected.tokens


def test_given_requests_side_by_side_then_each_gets_the_tokens_it_gets_alone(service: Service, directory: Path) -> None:
    """Given requests of different lengths at the same time, then each gets the tokens it gets alone."""
    requests = [Generate(tuple(range(1, number + 2)), 3 + number % 5) for number in range(12)]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: service.generate(request.prompt, request.max_tokens), requests))
    assert [answer.tokens for answer in answers] == [unsplit(directory, r)[0].tokens for r in requests]


def test_given_new_weights_in_the_middle_of_an_answer_then_old_keys_and_values_are_not_used(
    directory: Path, tmp_path: Path
) -> None:
    """Given new weights in the middle of an answer, then the next token is the one the new weights alone give."""
    new = tmp_path / "v2"
    checkpoint.write(new, SMALL, seed=2)
    engine = Engine(directory, TensorParallel())
    engine.admit(0, Generate(PROMPT, 3))
    assert list(engine.step()) == []
    assert list(engine.step()) == []
    engine.load(checkpoint.read(new))
    ((_, answer),) = engine.step()

    assert answer.tokens[:2] == unsplit(directory, Generate(PROMPT, 2))[0].tokens
    assert answer.tokens[2:] == unsplit(new, Generate((*PROMPT, *answer.tokens[:2]), 1))[0].tokens


def test_given_one_bit_that_differs_then_the_comparison_finds_it(
    service: Service, directory: Path, tmp_path: Path
) -> None:
    """Given a copy of the checkpoint with one bit changed, then exactly that element is reported, by its worker."""
    changed = shutil.copytree(directory, tmp_path / "changed")
    file = changed / "model-1.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.v_proj.weight"].view(torch.int32)[-1, -1] ^= 1
    save_file(tensors, file)

    assert [worker.mismatches for worker in service.compare(directory)] == [{}, {}]
    mismatches = [worker.mismatches for worker in service.compare(changed)]
    assert mismatches == [{}, {"model.layers.1.self_attn.qkv_proj.weight": 1}]


@pytest.mark.parametrize(("prompt", "max_tokens"), [((), 3), ((1,), 0), ((64,), 3), ((-1,), 3), ((1,), 32)], ids=str)
def test_given_an_impossible_request_then_it_is_refused_and_the_next_one_is_served(
    service: Service, prompt: tuple[int, ...], max_tokens: int
) -> None:
    """Given a request that no model could serve, then it is refused and the next one is served."""
    with pytest.raises(ServeError, match="refused"):
        service.generate(prompt, max_tokens)
    assert len(service.generate(PROMPT, 4).tokens) == 4


@pytest.mark.parametrize("body", [b"", b"nope", b"[]", b'{"prompt": "text"}', b'{"prompt": [1.5]}'])
def test_given_a_malformed_request_then_it_is_refused(service: Service, body: bytes) -> None:
    assert (
        httpx.post(f"{service.url}/generate", content=body, timeout=60.0, trust_env=False).status_code
        == httpx.codes.BAD_REQUEST
    )


def test_given_unknown_pages_and_directories_then_they_are_refused(service: Service, tmp_path: Path) -> None:
    assert httpx.get(f"{service.url}/nothing", timeout=60.0, trust_env=False).status_code == httpx.codes.NOT_FOUND
    assert (
        httpx.post(f"{service.url}/nothing", content=b"{}", timeout=60.0, trust_env=False).status_code
        == httpx.codes.NOT_FOUND
    )
    with pytest.raises(ServeError, match="cannot read the checkpoint"):
        service.compare(tmp_path / "nothing")


def test_given_a_worker_that_dies_then_requests_are_refused_and_the_server_ends(
    directory: Path, tmp_path: Path
) -> None:
    """Given that a worker dies, then the server says so, refuses requests, and still ends properly."""
    service = Service(directory, "v1", tmp_path / "server.log")
    try:
        service.wait()
        assert [worker.version for worker in service.inspect()] == ["v1", "v1"]
        service.processes[1].kill()
        with pytest.raises(ServeError, match="a worker is gone"):
            service.generate(PROMPT, 2)
        assert httpx.get(f"{service.url}/parameters", timeout=60.0, trust_env=False).status_code == 503
    finally:
        service.close()
    assert all(process.poll() is not None for process in service.processes)
