# Every target sets up its own virtual environment on first use.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 1

.PHONY: install pong test slow check clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Arcadia needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[atari,box2d,mujoco,pybullet,report,video,wandb,dev]'
	touch $@

# Train Pong until the mean score of the last 100 episodes is 19, then play 30 games with the result; the margin makes
# those games likely to average 18 too. The budget is also the horizon over which learning rate and entropy weight
# fall. Pong is learned faster in three passes over each rollout than in the recipe's two (docs/performance.md).
pong: .venv/installed
	run=runs/pong-$(SEED)-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/arcadia train pong --seed $(SEED) --num-epochs 3 --stop-score 19 --total-steps 1000000 --run-dir $$run && \
	$(BIN)/arcadia eval $$run --episodes 30

# The default tests, two at a time.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Learning tests in real processes.
slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# Everything a change must pass before it is committed.
check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/test_architecture.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
