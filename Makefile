# `make demo` and `make test` need nothing but Python >= 3.10.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types check clean

demo: .venv/installed
	$(BIN)/latent-obs demo

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

check: lint types test

.venv/installed: pyproject.toml constraints.txt hatch_build.py latent_obs/_area.c
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
