# Two commands for a newcomer: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What adds to the table of docs/reliability.md.
FAULTS := tests/faults tests/slurm $(patsubst %,tests/unit/test_%.py,archives config extractors lmdb_damage resume unpickle)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help env demo paper test slurm-test fault-test docs docs-test lint bench lock unlock clean

help:  ## Print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

env: $(VENV)/.complete  ## Make the virtual environment with the locked versions

# torch comes first and with its dependencies: a CPU wheel where one is at hand, CUDA from the index elsewhere.
# The rest is locked without dependencies, because fairchem-core's own pins are older than what it runs with.
$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "atomcsi needs Python 3.11 or later; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "Python's venv module is missing (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing into $(VENV) (2 GB with a CPU build of PyTorch; about two minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: env  ## Answer the question on the embedded demo data: results/report.html
	snakemake --profile profiles/local all
	@echo "Open results/report.html"

paper: env  ## Run every experiment of the paper, too, on the demo's stand-ins (50 minutes on two cores)
	snakemake --profile profiles/local all paper --config experiments=all
	@echo "Open results/report.html"

test: env lint  ## Run every check
	pytest -n 2 --dist worksteal --durations 40 --ignore tests/slurm
	@$(MAKE) --no-print-directory slurm-test

slurm-test: env  ## Run the pipeline on a real SLURM of this machine alone, and break it (part of test; as root)
	pytest tests/slurm

fault-test: env  ## Kill, starve and damage every step, many times: the table of docs/reliability.md
	ATOMCSI_KILLS=8 pytest $(FAULTS) --record

docs: env  ## Make the site of docs/: docs/_build/html/index.html
	python -m sphinx --fail-on-warning --jobs auto docs docs/_build/html

docs-test: env  ## Run every command of README.md and docs/ for real; in test, those of Snakemake are planned
	ATOMCSI_DOCS=full pytest tests/docs

lint: env
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

bench: env  ## Measure speed and memory against plain baselines: results/bench.json
	python -m benchmarks $(TOPICS)

unlock: env  ## Release the lock that a killed Snakemake left behind
	snakemake --unlock

# torch brings its own NVIDIA packages; nvidia-ml-py3 is CHGNet's.
lock: env  ## Renew requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	uv pip compile pyproject.toml --extra dev --extra docs --universal --python-version 3.11 --override requirements.overrides \
	  --no-annotate --no-header --quiet --upgrade --output-file requirements.lock.tmp
	sed -E -e '/^nvidia-ml-py3==/b' -e '/^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/d' \
	  requirements.lock.tmp > requirements.lock
	rm requirements.lock.tmp

clean:  ## Remove results, downloaded raw files and Snakemake's records
	rm -rf results resources/raw .snakemake docs/_build
