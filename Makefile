# The commands that a person types often. `make demo` and `make test` need nothing but Python >= 3.10, make and pip.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
# OpenMP's waiting threads sleep instead of spinning: see tools/_common.py.
# Quiet on the screen, everything in the log; what went wrong is shown.
PIP := run() { $(PY) -m pip --disable-pip-version-check install "$$@" >> $(LOG) 2>&1 || { tail -n 20 $(LOG); exit 1; }; }; run

# One process per core, up to eight, each with one thread; a file stays in one process, which makes what its tests
# share once.
TEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: venv demo test test-slow test-breaking test-onedl coverage fuzz lint dist

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python >= 3.10 is needed, got " + sys.version.split()[0] + "\nremedy: name another with: make venv PYTHON=python3.12")'
	@echo "Installing into $(VENV), some minutes and about 6 GB; nothing is compiled. Details: $(LOG)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) 'pip>=25.1'
	@echo "  1/2 PyTorch and the libraries"
	@$(PIP) -c constraints.txt -e . --group dev
	@echo "  2/2 mmengine, mmcv-lite, MMDetection, MMSegmentation"
	@$(PIP) -c constraints.txt --no-deps --group openmmlab
	@touch $(STAMP)

demo: $(STAMP)
	@$(PY) tools/demo.py

test: $(STAMP)
	@$(TEST) -m 'not slow and not breaking'

test-slow: $(STAMP)
	@$(TEST) -m slow

# A hundred kills, and two hundred damaged files of each format: minutes.
test-breaking: $(STAMP)
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest -m breaking

.venv-onedl/.installed: $(STAMP) .ci/onedl_env.py
	@$(PY) .ci/onedl_env.py .venv-onedl
	@touch $@

test-onedl: .venv-onedl/.installed
	@OMP_WAIT_POLICY=passive .venv-onedl/bin/python -m pytest -m smoke

coverage: $(STAMP)
	@$(TEST) -m 'not slow and not breaking' --cov --cov-report=json
	@$(PY) .ci/coverage_by_room.py work_dirs/coverage.json

# Ten minutes for each reader; `make fuzz FUZZ_SECONDS=60 FUZZ_READERS=images` for one of them, shortly.
FUZZ_SECONDS := 600
FUZZ_READERS :=
fuzz: $(STAMP)
	@$(PY) -m pip --disable-pip-version-check install -q -c constraints.txt --group fuzz
	@OMP_NUM_THREADS=1 $(PY) .ci/fuzz.py --seconds $(FUZZ_SECONDS) $(FUZZ_READERS)

lint: $(STAMP)
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(PY) -m codespell_lib

# Source distribution and wheel, built in this environment into dist/ and checked.
dist: $(STAMP)
	@$(PY) -m pip --disable-pip-version-check install -q -c constraints.txt --group release
	@$(PY) -m build --no-isolation && $(PY) -m twine check --strict dist/*
