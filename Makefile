PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help setup report real test test-fast check docs bench gpu lab clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.done  ## make the virtual environment with everything in it

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

report: setup  ## the main job on the embedded default: build, flag, train, report
	rm -rf runs/demo
	$(BIN)/chesboard demo --out runs/demo

real: setup  ## the main job on a real chat model: MODEL=folder or hub id, DATA=pairs if you like
	$(BIN)/chesboard demo --real --out runs/real $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA))

test: setup  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## without the slow tests, for developing
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check: setup  ## style, types and the one-way imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup  ## the documentation's site: runs/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: setup  ## speeds as ratios within one run; MODEL=folder: of your model on real pairs
	$(BIN)/python tests/benchmarks/bench.py $(if $(MODEL),--model $(MODEL))

gpu: setup  ## on one card: every number against the CPU's, and the speeds, in nine minutes
	$(BIN)/python tests/benchmarks/gpu.py

lab: setup  ## JupyterLab on the latest run in runs/, or on RUN=folder
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,lab]'
	$(if $(RUN),CHESBOARD_RUN="$(abspath $(RUN))") $(BIN)/jupyter lab notebooks/run_report.ipynb

clean:  ## remove the virtual environment (runs/ stays)
	rm -rf $(VENV)
