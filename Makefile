# make serve and make test need only Python 3.11, make and a package index. Both may be repeated.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= training/recipes/sample.yaml
# pip's plain `torch` is the CUDA build; this range names the release whose CPU build pip is offered here too.
TORCH ?= torch==2.13.*

.PHONY: serve test soak check train bench clean

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	touch $@

serve: $(VENV)/installed ## serve the shipped adapters on 127.0.0.1:8000
	TONEARM_EXPERIMENTS_FILE=$${TONEARM_EXPERIMENTS_FILE-experiments.yaml} $(BIN)/tonearm serve

test: $(VENV)/installed ## the tests
	$(BIN)/python -m pytest -m "not soak"

soak: $(VENV)/installed ## the longer proofs
	$(BIN)/python -m pytest -m soak

check: $(VENV)/installed ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(VENV)/installed ## train RECIPE (default: the sample set) into the shipped registry
	$(BIN)/tonearm train $(RECIPE)

bench: $(VENV)/installed ## the side-by-side measurements
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build *.egg-info
