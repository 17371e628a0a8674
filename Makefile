# Two commands do everything: `make quickstart` and `make test`. Both install into .venv first, once.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: help install quickstart test test-quick test-faults test-cluster fault-table lint types imports tests soak bench bench-gpu test-gpu clean

help:
	@echo "make quickstart   install, then train on bundled digits, score the samples, open nothing else"
	@echo "make test         install, then ruff, mypy, import-linter and pytest"
	@echo "make test-quick   install, then ruff and the tests that start neither Ray nor groups of processes"
	@echo "make test-faults  install, then what kills processes and breaks storage; minutes"
	@echo "make test-cluster install, Debian's Slurm and PostgreSQL too, then what runs on hosts that are apart; minutes"
	@echo "make fault-table  the same, and its measurements into platform/TRAINING.md"
	@echo "make soak         install, then kill processes at random for 20 minutes, and compare the ends"
	@echo "make bench        install, then the speed measurements of tests/benchmarks"
	@echo "make bench-gpu    what one GPU reaches: needs torch, einops and safetensors, and installs nothing"
	@echo "make test-gpu     train, resume and sample on one GPU, in about two minutes; installs nothing"
	@echo "make clean        remove .venv and caches; runs/ and shards/ stay"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Without a GPU, the CPU build of torch: the default one brings gigabytes of CUDA libraries. Tried in turn: the
# indexes that pip is set up for, then the CPU index that uv knows, then whatever pip finds.
.PHONY: torch
torch:
	@pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; \
	if nvidia-smi >/dev/null 2>&1; then \
		echo "GPU found: installing torch $(TORCH)"; $$pip torch==$(TORCH); \
	else \
		echo "no GPU found: installing the CPU build of torch $(TORCH)"; \
		$$pip torch==$(TORCH)+cpu 2>/dev/null || \
		{ $$pip 'uv>=0.9,<1' && $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu torch==$(TORCH); } || \
		$$pip torch==$(TORCH); \
	fi

quickstart: install
	@$(BIN)/causalfusion quickstart $(ARGS)

test: lint types imports tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

# Tests that start Ray run one after the other in one process, and begin first; the others go beside them.
tests: install
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# While working. mypy and import-linter are left to `make test` and to pre-commit.
test-quick: lint
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not ray and not processes and not faults and not cluster" \
		--ignore tests/integration --ignore tests/faults $(ARGS)

test-faults: install
	$(BIN)/pytest -n auto --maxprocesses 2 --dist loadfile -m faults tests/faults $(ARGS)

# The same, and its figures into the documentation.
fault-table: install
	@rm -f .fault-results.jsonl
	CAUSALFUSION_FAULT_RESULTS=$(CURDIR)/.fault-results.jsonl $(MAKE) test-faults
	$(BIN)/python -m tests.faults.table .fault-results.jsonl platform/TRAINING.md

# Minutes of random kills, by hand: each command is repeated, and its end compared with an undisturbed one.
soak: install
	$(BIN)/python -m tests.soak $(ARGS)

# Hosts as network namespaces, Slurm, MLflow on PostgreSQL, object storage. What cannot run here says why.
test-cluster: install
	@tests/cluster/install $(BIN)/python
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m cluster tests/cluster $(ARGS)

bench: install
	$(BIN)/python -m tests.benchmarks $(ARGS)

# A rented machine has torch, and may reach no registry. So nothing is installed, and its own python3 is enough. The
# packages `gpu` are run by their short name, because libraries may have installed a package `tests` there.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)

bench-gpu:
	PYTHONPATH=models:platform:tests/benchmarks $(GPU_PYTHON) -m gpu $(ARGS)

test-gpu:
	PYTHONPATH=models:platform:tests $(GPU_PYTHON) -m gpu $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
