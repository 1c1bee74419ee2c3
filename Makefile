# `make demo`; `make check` before a commit; `make test` before a merge. Each sets up .venv first; any may come first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= demo-run
PYTEST := $(BIN)/python -m pytest
TOGETHER := -n 2 --dist worksteal

.PHONY: demo check test bench lint docs clean

demo: $(READY)  ## mine the embedded model's experts of a few hundred WordNet concepts, and steer with them
	$(BIN)/expertmine demo --out $(RUN)

check: lint docs  ## lint, types, docs and the fast tests: under four minutes on two cores
	$(PYTEST) $(TOGETHER) -m "not slow and not serial"

test: $(READY)  ## every test: under twelve minutes on two cores
	$(PYTEST) $(TOGETHER) -m "not serial"
	$(PYTEST) -m serial

bench: $(READY)  ## speed, as ratios measured in one run
	$(PYTEST) tests/benchmarks/bench_*.py -s

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/check_words.py

docs: $(READY)  ## the documentation as a site, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo-run site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and by its exact version alone: that spelling takes the build of this machine's kind.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expertmine needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
