# Everything a person or a CI needs; each target creates the virtual environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup check test test-slow demo bench accuracy train docs fix clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep -E '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 3 --dist loadfile $(ARGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

demo: $(READY)
	$(BIN)/stream-sttm demo $(ARGS)

bench: $(READY)
	$(BIN)/python -m bench.merging $(ARGS)
	$(BIN)/python -m bench.memory $(ARGS)

accuracy: $(READY)
	$(BIN)/python -m bench.accuracy $(ARGS)

train: $(READY)
	$(BIN)/python -m stream_sttm.demo.train --out runs/demo $(ARGS)

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
