# Everything from a bare machine: each target makes its own virtual environment first. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA ?= digits
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
export JAX_PLATFORMS ?= cpu

.PHONY: demo test quick exhaustive check format bench clean

demo: $(VENV)/.demo  ## the main job: train, compress, save, load in a fresh process, score, show
	$(BIN)/python -m examples.demo --data $(DATA)

test: $(VENV)/.dev  ## the suite, doctests included; of large tables a sample
	$(PYTEST)

quick: $(VENV)/.dev  ## the fast part of the suite
	$(PYTEST) -m "not slow and not tpu and not exhaustive"

exhaustive: $(VENV)/.dev  ## every case of every table, every benchmark
	$(PYTEST) -m ""

check: $(VENV)/.dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## every benchmark that needs no data set, in its quick form
	for name in mask_update train_step refresh_step refresh_pod shards tpu_aot; do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev,tpu]"
	touch $@

clean:
	rm -rf $(VENV) out
