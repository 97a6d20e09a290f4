# Every target sets itself up: `make test` on a fresh machine needs Python 3.11 or newer and nothing else.
#   PYTHON   the interpreter that makes .venv, once
#   WORKERS  test processes, each with one thread
# A CPU-only torch from its own index: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test slow lint format docs fidelity calibration planted

demo: .venv/.installed
	$(BIN)/sciddiff run poisson_source elnino digits_ct --out demo
	$(BIN)/sciddiff report demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

slow: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow

# both go on where they were stopped; benchmarks/fidelity.json keeps what was measured
fidelity: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity.py --jobs $(WORKERS)

calibration: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity.py --sbc 300 99 --jobs $(WORKERS)

planted: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/planted_bugs.py --workers $(WORKERS)

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.installed-docs
	$(BIN)/sphinx-build -W docs docs/_build/html

# torch comes first and alone, so that nothing else decides which build of it is taken
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sciddiff needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch -c constraints.txt
	$(BIN)/python -m pip install -e ".[data,dev]" -c constraints.txt
	touch $@

.venv/.installed-docs: .venv/.installed
	$(BIN)/python -m pip install -e ".[docs]" -c constraints.txt
	touch $@
