# Two commands do everything: `make demo` and `make test`. Each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss-gpu-cu12 where an NVIDIA card answers, else faiss-cpu: both are the module faiss, so never both.
FAISS := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := $(VENV)/.set-up-$(FAISS)
WHAT := --editable ".[$(FAISS),lite0,dev]"
# Tests wait now and then, for processes and disks: half as many more as there are cores keep all cores busy.
AT_ONCE := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n + n / 2)))
# Every process that starts reads modules as they were compiled once, also where the shell says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test quick chromium browser lint types tests benchmark-demo clean

help:
	@echo "make demo            set up, then run the whole pipeline on simulated tissue"
	@echo "make test            set up, then run all checks"
	@echo "make quick           set up, then run the checks that take three minutes, for work on the code"
	@echo "make chromium        install Chromium where that is possible, for the tests of pages in a browser"
	@echo "make browser         the same, set up, and run these tests alone"
	@echo "make benchmark-demo  measure the heads on simulated tissue, seeds 0 to 2"
	@echo "make clean           remove what these make"

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# uv fetches and unpacks side by side, several times faster; where only what pip is told leads to packages, pip does.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(WHAT) || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(WHAT)
# pip compiles on one core, and tests of libraries too, of which some are not meant to compile. Of the thousands
# of modules of transformers' networks, a few are ever imported.
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|transformers/models|pip)/' $(VENV)/lib || true
	mkdir -p $(VENV)/typing && ln -sfn "$(CURDIR)" $(VENV)/typing/mmap_st
	touch $(STAMP)

demo: setup
	$(BIN)/mmap demo --out demo

# Types are checked while tests wait for disks and processes.
test: lint
	$(MAKE) -j2 types tests

quick: lint types
	$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile -m "not slow"

# Debian's, for the tests that click through pages; without it they are skipped, with that reason.
chromium:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	{ test "$$(id -u)" = 0 && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; } || \
	echo "chromium is not here and cannot be installed: the tests in a browser are skipped"

browser: setup chromium
	$(BIN)/python -m pytest -n auto --dist loadfile tests/browser

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The check for machines with a card is run where there is one, seldom: types keep it in step with the package.
types: setup
	$(BIN)/mypy
	cd benchmarks && ../$(BIN)/mypy --config-file ../pyproject.toml --explicit-package-bases gpu_*.py

tests: setup
	$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

benchmark-demo: setup
	$(BIN)/python benchmarks/demo.py --out out/benchmark-demo

clean:
	rm -rf $(VENV) demo out build *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
