# Every target that a person needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
EXTRAS := dask,datasets,dev,pipelines,serve,trainer
DEMO ?= demo
JOBS ?= 2
# One thread a process while tests run side by side.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help

.PHONY: help
help:  ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED)  ## Make .venv and install everything, once

# torch first and pinned: a bare requirement would take the newest build with gigabytes of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python >= 3.11, found $$($(PYTHON) --version); set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into $(VENV) (about 2 GB, a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0 --editable '.[$(EXTRAS)]'
	@touch $@

.PHONY: demo
demo: $(INSTALLED)  ## Run the whole pipeline on real purchases (again: compares with the first run's champion)
	@test -f $(DEMO)/data/import_report.json || $(BIN)/conversion-retrieval import completejourney --output $(DEMO)/data
	@$(BIN)/python -m pipelines run --data $(DEMO)/data --registry $(DEMO)/registry --output $(DEMO)/runs \
		--config configs/completejourney.yaml --allow-first

.PHONY: test
test: lint types tests  ## Lint, types and all tests

.PHONY: lint
lint: $(INSTALLED)  ## Ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: types
types: $(INSTALLED)  ## mypy, strict
	@$(BIN)/mypy

.PHONY: tests
tests: $(INSTALLED)  ## pytest alone
	@$(TEST_ENV) $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: format
format: $(INSTALLED)  ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: golden
golden: $(INSTALLED)  ## Rewrite the compiled YAML under version control
	@$(BIN)/python -m pipelines compile --golden

.PHONY: wheel
wheel: $(INSTALLED)  ## Build the wheel into dist/
	@$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: lock
lock: $(INSTALLED)  ## Rewrite constraints.txt from what is installed now
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' | sort --ignore-case; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: clean
clean:  ## Remove what the demo made (data, runs, registry), not .venv
	@rm -rf $(DEMO) dist build
