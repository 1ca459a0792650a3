# The commands that a person types often. `make demo` and `make test` need nothing but Python >= 3.10, make and pip.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
STAMP := $(VENV)/.installed

.PHONY: venv demo test test-slow lint

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python >= 3.10 is needed, got " + sys.version.split()[0] + "; name another with: make venv PYTHON=python3.12")'
	@echo "Installing into $(VENV): PyTorch and the OpenMMLab packages, about 6 GB, some minutes; nothing is compiled."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) install 'pip>=25.1'
	@$(PIP) install -c constraints.txt -e . --group dev
	@$(PIP) install -c constraints.txt --no-deps --group openmmlab
	@touch $(STAMP)
	@echo "Installed into $(VENV)."

demo: venv
	@$(PY) tools/demo.py

test: venv
	@$(PY) -m pytest -m 'not slow'

test-slow: venv
	@$(PY) -m pytest -m slow

lint: venv
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(PY) -m codespell_lib


