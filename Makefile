# make train           set up .venv, then run the default training run    make train ARGS="run.steps=400 model=gpt_130m"
# make test            set up .venv, then run all tests without a GPU     make test ARGS="tests/attention -x" JOBS=8
# make test-fast       only the tests that take less than three seconds and start no processes
# make test-multigpu   the tests of several ranks, on the GPUs of this machine (at least two)
# make test-slurm      start a SLURM cluster of two nodes on this machine (Debian, root), and run its tests
# make coverage        run the tests, then list the lines and branches that no test runs
# make lint            ruff and mypy
# make clean           remove .venv and build files
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
# loadfile: the tests of one file run in one process. tests/conftest.py puts the files with most slow tests first.
PYTEST = -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: train test test-fast coverage test-multigpu slurm-cluster test-slurm lint clean
train: $(VENV)/.run-ready
	$(BIN)/lhtrain $(ARGS)

test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(ARGS)

test-fast: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m 'not slow' $(ARGS)

coverage: $(VENV)/.dev-ready
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run $(PYTEST) $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-multigpu: $(VENV)/.dev-ready
	@$(BIN)/python -c 'import sys, torch; n = torch.cuda.device_count(); sys.exit(n < 2 and f"needs two GPUs, found {n}")'
	LHTRAIN_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/distributed tests/context_parallel/test_context.py $(ARGS)

slurm-cluster:
	scripts/slurm/local_cluster.sh install
	scripts/slurm/local_cluster.sh start

test-slurm: $(VENV)/.dev-ready slurm-cluster
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[slurm]'
	SLURM_CONF=$$(scripts/slurm/local_cluster.sh conf) $(BIN)/python -m pytest tests/slurm -m slurm $(ARGS); \
		status=$$?; scripts/slurm/local_cluster.sh stop; exit $$status

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.run-ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[wandb]'
	scripts/install_flash.sh $(BIN)/python
	touch $@

$(VENV)/.dev-ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	scripts/install_flash.sh $(BIN)/python
	touch $@ $(VENV)/.run-ready

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lhtrain needs Python 3.11 or newer. Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info
