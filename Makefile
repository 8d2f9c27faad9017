# `make` shows the targets. In an active conda environment called lapnb its python is used,
# otherwise .venv, which is made on first use. Another python: make PYTHON=/path/to/python test

PYTHON3 ?= python3
ifeq ($(CONDA_DEFAULT_ENV),lapnb)
PYTHON ?= python
endif
ifndef PYTHON
PYTHON := .venv/bin/python
ENVIRONMENT := .venv/.ready
endif

.PHONY: help report test results lint bench clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

report: $(ENVIRONMENT) ## run all notebooks (options in ARGS="..."), write figures/quick and build/report
	$(PYTHON) -m lapnb $(ARGS)

# A worker that crashes ends the run; another in its place would wait for ever.
SPREAD := -n logical --maxprocesses 4 --max-worker-restart=0
# One notebook is one worker's business; the notebooks, not their matrix products, fill the cores.
test: export OMP_NUM_THREADS = 1
test: export LAPNB_WORKERS = 1
test: export TQDM_DISABLE = 1
test: $(ENVIRONMENT) ## unit tests, all notebooks at the smoke scale, committed outputs (nbval)
	$(PYTHON) -m pytest $(SPREAD) --dist loadgroup
	$(PYTHON) -m pytest $(SPREAD) --dist loadscope \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout 600 notebooks/

results: $(ENVIRONMENT) ## write RESULTS.md, README's numbers and the committed pictures anew
	$(PYTHON) docs/results.py

lint: $(ENVIRONMENT) ## ruff: rules and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

bench: $(ENVIRONMENT) ## benchmarks of the fast paths
	$(PYTHON) -m pytest --benchmark-only benchmarks

clean: ## remove build/, quick and smoke figures and caches (.venv and runs/ stay)
	rm -rf build figures/quick figures/smoke *.egg-info .pytest_cache .ruff_cache .benchmarks
	find lapnb tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml
	@command -v $(PYTHON3) >/dev/null || \
	    { echo "$(PYTHON3) was not found: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "lapnb needs Python 3.11 or newer, $(PYTHON3) is older:" \
	           "name another one, as in make PYTHON3=python3.12 test"; exit 1; }
	@$(PYTHON3) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON3) comes without venv: install it (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	$(PYTHON3) -m venv .venv
	@echo "Installing lapnb and what it needs into .venv (PyTorch alone is a download of some GB)."
	.venv/bin/python -m pip install --editable '.[report,test]'
	@touch $@
