# From nothing but Python 3.11 and make: `make test` and `make demo` create .venv, install, and run.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Tests share the cores as processes, one thread each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: install check test exhaustive lint faults demo clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev,metrics,topics,timm,subwords,app,sweep,track,onnx,notebooks]'
	touch $@

# For every save: linters, types and the fast laws, under two minutes on two cores.
check: lint
	$(PYTEST) -m "not slow and not java"

test: install lint
	$(PYTEST) -m "not exhaustive"

# What takes further minutes and is not in CI: every family as ONNX graphs, every launcher, the benchmarks.
exhaustive: install
	$(PYTEST) -m exhaustive

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Kills, damaged files and races by the ten thousand: about an hour, not in CI. OPTIONS=--quick takes a minute.
faults: install
	OMP_NUM_THREADS=1 $(RUN) -m tests.faults all $(OPTIONS)

demo: install
	$(RUN) -m captioning.demo

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
