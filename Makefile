PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS)

.PHONY: demo test test-all test-gpu lint types docs linkcheck benchmark venv clean help

demo: $(STAMP)  ## simulate, fit and plot a small volume (demo_output/); DEMO_ARGS=--quick for two voxels
	$(BIN)/python examples/demo.py demo_output $(DEMO_ARGS)

test: $(STAMP)  ## run the tests but the slow ones, on two cores, and name the slowest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10 $(PYTEST_ARGS)

test-all: $(STAMP)  ## run all tests
	$(BIN)/python -m pytest -m "" $(PYTEST_ARGS)

test-gpu: $(STAMP)  ## run the tests that need a GPU (skipped without one)
	$(BIN)/python -m pytest -m gpu tests $(PYTEST_ARGS)

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## check types
	$(BIN)/mypy

docs: $(DOCS_STAMP)  ## build the pages of doc/ (doc/_build/)
	$(BIN)/python -m sphinx -q -W --keep-going doc doc/_build

linkcheck: $(DOCS_STAMP)  ## check the links of the pages to other sites (needs a network)
	$(BIN)/python -m sphinx -q -b linkcheck -D plot_gallery=0 doc doc/_build/links

benchmark: $(STAMP)  ## run a benchmark: NAME=recovery [ARGS=--quick]
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

venv: $(STAMP)  ## install into the active environment or .venv, as all of these do

clean:  ## remove what these made
	rm -rf .venv demo_output doc/_build doc/auto_examples doc/generated build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list these
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(STAMP): pyproject.toml setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable ".[test]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP_INSTALL) --editable ".[docs]"
	touch $@
