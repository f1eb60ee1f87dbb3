# Thin wrappers: what each does is in README.md. A virtual environment of its own, .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-pynq3 test-browser test-browser-lab3 lint clean

demo: $(VENV)/.installed
	$(BIN)/llama-pynq generate "Once upon a time"

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest

# The oldest PYNQ that is supported: the images of PYNQ-Z1/Z2 and KV260, and Alveo.
test-pynq3: .venv-pynq3/.test-installed
	.venv-pynq3/bin/python -m pytest tests/test_driver.py tests/test_llama.py tests/test_emulation_*.py \
		tests/test_xrt.py tests/test_zynq.py tests/test_pyxrt_device.py

# The notebooks in Chromium, in the newest JupyterLab, and in the one of PYNQ 3.0.1's images.
test-browser: $(VENV)/.browser-installed
	$(BIN)/python -m pytest tests/browser

test-browser-lab3: .venv-lab3/.installed
	.venv-lab3/bin/python -m pytest tests/browser

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp')

SOURCES := setup.py pyproject.toml $(shell find hls_src llama_pynq notebooks overlay -type f -not -path 'overlay/llama/*' -not -path 'hls_src/build/*' -not -name '*.pyc' 2>/dev/null)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo 'Installing into $(VENV), and compiling the kernel: a minute or so.'
	$(BIN)/python -m pip install --quiet .
	touch $@

# Editable: the tests run against these files.
$(VENV)/.test-installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv-pynq3/.test-installed: $(SOURCES)
	$(PYTHON) -m venv .venv-pynq3
	.venv-pynq3/bin/python -m pip install --quiet --upgrade pip
	.venv-pynq3/bin/python -m pip install --quiet 'pynq==3.0.1' --editable '.[test]'
	touch $@

# Editable too, so a change of sources needs no second build.
$(VENV)/.browser-installed: pyproject.toml | $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --editable '.[test,browser]'
	touch $@

.venv-lab3/.installed: $(SOURCES) tests/browser/pynq-3.0.1.txt
	$(PYTHON) -m venv .venv-lab3
	.venv-lab3/bin/python -m pip install --quiet --upgrade pip
	.venv-lab3/bin/python -m pip install --quiet --constraint tests/browser/pynq-3.0.1.txt --editable '.[browser]'
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info
