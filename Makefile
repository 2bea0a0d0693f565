# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv with all that is needed.
PYTHON ?= python3
BIN := .venv/bin
DEMO := --dataset digits --out checkpoints/demo
DEMO_RUNS := checkpoints/demo/digits_expIF25_resnet8/seed0

.PHONY: demo test check torture clean

# Both stages and the report on real handwritten digits, on a CPU, in well under two minutes.
demo: .venv/runtime
	$(BIN)/python main_stage1.py $(DEMO) --overwrite
	$(BIN)/python main_stage2.py $(DEMO) --overwrite --method ce
	$(BIN)/python main_stage2.py $(DEMO) --overwrite --method los
	$(BIN)/python evaluate.py $(DEMO) --cur_stage stage2
	@echo
	$(BIN)/python -m utils.compare $(DEMO_RUNS)/stage1 $(DEMO_RUNS)/stage2_ce $(DEMO_RUNS)/stage2_los

test: .venv/development
	$(BIN)/python -m pytest -q

# Style and types, as the continuous integration runs them.
check: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/development: requirements-dev.txt .venv/runtime
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

# Runs that are killed at fifty random moments and gone on with; twelve minutes on one core, into results/torture.*
torture: .venv/runtime
	$(BIN)/python -m benchmarks.torture

clean:
	rm -rf .venv checkpoints/demo
