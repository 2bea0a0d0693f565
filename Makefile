# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv with all that is needed.
PYTHON ?= python3
BIN := .venv/bin
DEMO := --dataset digits --out checkpoints/demo
DEMO_RUNS := checkpoints/demo/digits_expIF25_resnet8/seed0

.PHONY: demo test check kill-and-resume torture versions audit clean

# Both stages and the report on real handwritten digits, on a CPU, in well under two minutes.
demo: .venv/runtime
	$(BIN)/python main_stage1.py $(DEMO) --overwrite
	$(BIN)/python main_stage2.py $(DEMO) --overwrite --method ce
	$(BIN)/python main_stage2.py $(DEMO) --overwrite --method los
	$(BIN)/python evaluate.py $(DEMO) --cur_stage stage2
	@echo
	$(BIN)/python -m tools.compare $(DEMO_RUNS)/stage1 $(DEMO_RUNS)/stage2_ce $(DEMO_RUNS)/stage2_los

# A test file a process, on all cores; one thread each, since more would wait for one another.
test: .venv/development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

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

# Runs that are killed at a hundred random moments and resumed, into results/kill_and_resume.*; below 25 minutes on two
# cores. The second name is the former one.
kill-and-resume: .venv/runtime
	$(BIN)/python -m benchmarks.robustness.kill_and_resume

torture: kill-and-resume

# The tests on the oldest and on the newest versions of what is required, into results/versions.*
versions: .venv/runtime
	$(BIN)/python -m benchmarks.robustness.versions

# What is known of weaknesses in the oldest and the newest versions of what is required; status 2: nobody could be asked.
audit: .venv/development
	$(BIN)/python -m benchmarks.robustness.audit

clean:
	rm -rf .venv checkpoints/demo
