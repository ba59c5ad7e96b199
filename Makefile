# `make demo` and `make test` need nothing but Python >= 3.10; the tests of the visualizer's page run in
# Debian's Chromium, which `make test` installs where there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test chromium oldest rllib zoo libraries tianshou lint types check clean

demo: .venv/demo-installed
	$(BIN)/latent-obs demo

# A process on each core, hence one thread in each.
test: .venv/installed chromium
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# As root, or with sudo where it asks for no password.
chromium:
	@command -v chromium >/dev/null || { \
		root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
		{ $$root apt-get update -qq && $$root apt-get install -qq -y --no-install-recommends chromium; } || { \
			echo "The tests of the visualizer need a browser: install chromium, as root for instance with" >&2; \
			echo "    apt-get install chromium" >&2; exit 1; }; }

# What touches Gymnasium, against the oldest version that is supported. Without doctests, whose option would
# skip a test module that fails to import.
oldest: .venv/oldest/installed
	PYTHONPATH=.venv/oldest $(BIN)/python -c "import gymnasium as g; assert g.__version__ == '1.0.0', g"
	PYTHONPATH=.venv/oldest $(BIN)/pytest --override-ini addopts=--import-mode=importlib $(TESTS_oldest)

TESTS_oldest := $(addprefix tests/test_,$(addsuffix .py,frames images adapter wrappers vector envs sb3 drift)) \
	tests/collecting/test_policies.py tests/collecting/test_sources.py

.venv/oldest/installed: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/oldest gymnasium==1.0.0 ale-py==0.10.2
	touch $@

# RLlib needs an older Gymnasium than constraints.txt has, and the RL Zoo, sbx and Tianshou bring many packages:
# each gets an environment of its own.
rllib zoo libraries tianshou: %: .venv/%/installed
	.venv/$@/bin/pytest $(TESTS_$@)

TESTS_rllib := tests/test_rllib.py tests/test_examples.py -k rllib
TESTS_zoo := tests/test_rl_zoo.py
TESTS_libraries := tests/test_examples.py tests/test_rendered.py -k "recurrent or sbx or skrl or jax or rendered"
TESTS_tianshou := tests/test_examples.py -k tianshou
NEEDS_rllib := '.[make,rllib]'
NEEDS_zoo := '.[box2d,make,sb3]' rl_zoo3 requests
NEEDS_libraries := '.[make,sb3]' sb3-contrib sbx-rl skrl pygame 'gymnasium[mujoco]' highway-env minigrid
NEEDS_tianshou := '.[make]' tianshou

.venv/rllib/installed .venv/zoo/installed .venv/libraries/installed .venv/tianshou/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	sed '/^gymnasium=/d' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt --editable $(NEEDS_$(notdir $(@D))) pytest
	touch $@

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

check: lint types test

# The demo needs a part of what the tests need, in the same environment: after `make test` it installs nothing.
INSTALL = $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
INPUTS := pyproject.toml constraints.txt hatch_build.py $(wildcard latent_obs/_*.[ch])

.venv/demo-installed: $(INPUTS)
	$(INSTALL) '.[make,sb3]'
	touch $@

.venv/installed: $(INPUTS)
	$(INSTALL) '.[dev]'
	touch .venv/demo-installed $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
