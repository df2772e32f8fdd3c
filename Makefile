# `make help` explains every target.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export UV_PYTHON_DOWNLOADS := never
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON := .venv/bin/python
ARGS ?=

.PHONY: help install demo train reproduce test test-slow test-reliability test-slurm test-python coverage check ui bench bench-full golden reference docs pretrained clean

help:  ## explain every target
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r name about; do printf '  make %-16s %s\n' "$$name" "$$about"; done

install: .venv/.installed  ## create .venv with everything the project needs (uv is installed where it is missing)

.venv/.installed: pyproject.toml uv.lock
	@command -v $(UV) >/dev/null || python3 -m pip install --quiet --target .uv uv  # not into a Python of the system
	@$(UV) sync --frozen --compile-bytecode --quiet
	@touch $@

demo: install  ## scratch, bottleneck and finetune on drawn images, and one table (a few minutes, no network)
	@$(PYTHON) -m experiments demo $(ARGS)

train: install  ## one run: make train ARGS="regime=finetune optimizer.lr=1e-4"
	@$(PYTHON) -m experiments.train $(ARGS)

test: install  ## the tests, but for the slow ones
	@$(PYTHON) -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: install  ## the slow tests
	@$(PYTHON) -m pytest -m slow $(ARGS)

test-reliability: install  ## kill, damage and confuse it a thousand times; a table of faults (under 20 minutes)
	@$(PYTHON) -m pytest tests/reliability --full -n auto --dist loadfile $(ARGS)

test-slurm: install  ## a sweep on SLURM, started on this machine for it (root, slurm-wlm, munge, the extra slurm; 8 minutes)
	@$(PYTHON) -m pytest -rs tests/reliability/test_slurm.py $(ARGS)

test-python:  ## the tests of `make test` on another Python: make test-python VERSION=3.13
	@UV_PROJECT_ENVIRONMENT=.venv-$(VERSION) $(UV) run --frozen --quiet --python $(or $(VERSION),$(error which? make test-python VERSION=3.13)) \
		python -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: install  ## the tests of `make test`, and the lines of each module that none of them runs
	@mkdir -p .coverage
	@$(PYTHON) -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder --cov $(ARGS)

check: install  ## formatting, lint and types
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

reproduce: install  ## the tutorial's experiments and its claims: make reproduce ARGS="--data PATH" (or ARGS=--quick)
	@$(PYTHON) -m experiments reproduce $(ARGS)

ui: install  ## the MLflow UI on the runs under outputs/
	@$(PYTHON) -m experiments ui $(ARGS)

bench: install  ## our times beside plain Keras's, on this machine left alone (under 15 minutes; VGG16 on a subset)
	@$(PYTHON) -m benchmarks.run $(ARGS)

bench-full: install  ## the same on all images, up to 20,000 of them, and what stored views cost and bring (hours)
	@$(PYTHON) -m benchmarks.run --full $(ARGS)

golden: install  ## write the composed configurations in tests/config/golden anew
	@$(PYTHON) -m pytest -q tests/config/test_conf.py --golden

reference: install  ## write docs/configuration.md and docs/cli.md anew, out of conf/, the schema and the parsers
	@$(PYTHON) docs/configuration.py
	@$(PYTHON) docs/cli.py

docs: install reference  ## build the documentation as a site in outputs/docs; warnings are errors
	@$(PYTHON) -m sphinx -q -W --keep-going -b html docs outputs/docs
	@echo outputs/docs/index.html

pretrained: install  ## train the shipped backbone of the small convnet anew, on drawn animals (about half an hour)
	@$(PYTHON) -m experiments pretrained $(ARGS)

clean:  ## remove the environment and caches of tools; outputs/ stays
	@rm -rf .venv .venv-* .uv .pytest_cache .mypy_cache .ruff_cache .coverage dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
