# Redline's tasks. Each sets up what it needs by itself; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv/bin
STAMP := .venv/.redline-ready
# Two threads on two busy cores are slower than one; parallelism comes from processes.
export OMP_NUM_THREADS := 1
WORKERS ?= 2
ARGS ?=
BOARD ?=

.PHONY: help setup demo test sim lint format regress mutants bench timing bitstream clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10
	@echo 'ARGS="..." passes options on, e.g. make demo ARGS="--seed 2" or make test ARGS="-k gradient".'

setup: $(STAMP) ## install system packages (where allowed), the virtual environment and pinned Python packages

$(STAMP): pyproject.toml constraints.txt scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup
	@touch $@

demo: $(STAMP) ## damage LeNet-5 on a faulty accelerator (its RTL) and retrain it there
	@$(VENV)/redline demo $(ARGS)

test: $(STAMP) ## the fast tests; lists what was skipped and how to have it
	$(VENV)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(ARGS)

sim: $(STAMP) ## the RTL benches (WAVES=1 leaves an FST of what failed)
	$(VENV)/python -m pytest tests/hw tests/sim -n $(WORKERS) --dist loadfile $(ARGS)

regress: $(STAMP) ## the slow and statistical tests (ARGS="--part 3/20": the fourth of twenty parts)
	$(VENV)/python -m pytest -m slow -n $(WORKERS) --dist load $(ARGS)

mutants: $(STAMP) ## small changes of the code that its tests do not see (hours; make mutants ARGS="--most 10 host/stats.py")
	@$(VENV)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
		--no-build-isolation --editable '.[mutants]'
	@nice $(VENV)/python scripts/mutants.py $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

format: $(STAMP) ## rewrite the sources in the project's format
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

bench: $(STAMP) ## speed of the co-simulation, as one JSON object
	@$(VENV)/redline bench cosim --json $(ARGS)

timing: $(STAMP) ## the delay tables anew, by place and route (three seeds of 16 x 8; minutes each), and their validation
	@command -v iverilog >/dev/null || { echo "Icarus Verilog is missing; run: sudo apt-get install iverilog" >&2; exit 1; }
	@$(VENV)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
		--no-build-isolation --editable '.[timing]'
	@$(VENV)/redline timing build $(ARGS)
	@$(VENV)/redline timing validate

bitstream: $(STAMP) ## a board's bitstream from open tools: make bitstream BOARD=ulx3s-85f (minutes)
	@test -n "$(BOARD)" || { echo "name a board: make bitstream BOARD=..., one of:" >&2; $(VENV)/redline bitstream >&2; exit 2; }
	@$(VENV)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
		--no-build-isolation --editable '.[bitstream]'
	@$(VENV)/redline bitstream $(BOARD) $(ARGS)

clean: ## remove everything made here, the virtual environment included (runs/ and data/ stay)
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis sim_build results.xml
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
