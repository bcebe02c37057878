# Two commands on a fresh machine: `make quickstart` trains, `make test` tests. Both make the environment they need in
# .venv, from the exact pins in constraints.txt, and do so again only when pyproject.toml or the pins change.
# Two processes test, with one thread each: threads of two that share two cores wait for each other most of the time.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-fast test-kills benchmarks check format lock clean

quickstart: .venv/.base
	$(BIN)/python train.py experiment=quickstart

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-fast: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-kills: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kills

# With more to it: make benchmarks WITH='--mirror DIR --vectors DIR --repeats 5'. Peers have an environment of their own.
benchmarks: .venv/.dev .venv-peers/.made
	$(BIN)/python benchmarks/all.py --peer-python $(CURDIR)/.venv-peers/bin/python $(WITH)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/.dev
	{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -v '^-e' | sed 's/+cpu//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv .venv-peers

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "textbed needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv-peers/.made: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/requirements-peers.txt
	@touch $@
