"""Every kind of engine that runs here keeps every promise of an update."""

from __future__ import annotations

import importlib.util

import pytest

from ckpt_transport.testing.engine import CHECKS, EngineCheck, EngineUnderTest
from tests.conformance.engines.acme import AcmeUnderTest
from tests.conformance.engines.modules import LoaderUnderTest, ModuleUnderTest
from tests.conformance.engines.stub import StubUnderTest

BATCHES = ("holds_requests", "resumes_requests", "stages_beside", "answers_all", "drops_caches", "rolls_back")
"""What differs where a loop of its own runs the model."""
IN_PROCESS = [check for check in CHECKS if check.where.partition(".")[0] != "DrivenEngine"]
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers: pip install -e '.[frameworks]'"
)


@pytest.mark.parametrize("check", IN_PROCESS, ids=lambda check: check.name)
@pytest.mark.parametrize("engine", [ModuleUnderTest, LoaderUnderTest])
def test_given_a_plain_module_then_it_keeps_every_promise(engine: type[EngineUnderTest], check: EngineCheck) -> None:
    check(engine)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_given_the_fleet_of_vllm_and_the_routes_that_it_asks_then_it_keeps_every_promise(check: EngineCheck) -> None:
    check(StubUnderTest)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_given_the_example_of_an_engine_that_is_driven_then_it_keeps_every_promise(check: EngineCheck) -> None:
    check(AcmeUnderTest)


@needs_transformers
@pytest.mark.parametrize("check", IN_PROCESS, ids=lambda check: check.name)
def test_given_a_model_of_transformers_then_it_keeps_every_promise(check: EngineCheck) -> None:
    from tests.conformance.engines.transformers_models import TransformersUnderTest

    check(TransformersUnderTest)


@needs_transformers
@pytest.mark.parametrize("check", [each for each in CHECKS if each.name in BATCHES], ids=lambda check: check.name)
def test_given_continuous_batching_then_it_keeps_every_promise_that_concerns_its_loop(check: EngineCheck) -> None:
    from tests.conformance.engines.transformers_models import BatchingUnderTest

    check(BatchingUnderTest)
