# Two commands, each doing all of its own set-up in a fresh clone:  make study   and   make test
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
OPTIONS ?=
CORES ?= all
WORKERS ?= 2
READY = $(VENV)/.ready
# A bare environment must do: call everything by its path.
RUN = PATH="$(abspath $(VENV))/bin:$$PATH"

.PHONY: help setup study report test check resume clean

help:
	@echo "make study   set up and run the embedded mini study; report in results/mini/report.zip"
	@echo "make test    set up, check format, lint and import contracts, and run all tests (WORKERS=$(WORKERS) side by side)"
	@echo "make check   only the format, lint and import checks"
	@echo "make resume  go on after a killed run: cancel what is left of it on a cluster, unlock, start its command again"
	@echo "make clean   remove what the mini study made (the environment stays)"

setup: $(READY)

$(READY): envs/requirements.in envs/requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python {v[0]}.{v[1]} found, 3.11 or newer needed: make PYTHON=python3.11 ..." if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r envs/requirements.in -c envs/requirements.lock
	@$(VENV)/bin/python -c 'import importlib.metadata as m, shutil; v = m.version("torch"); shutil.which("nvidia-smi") or "+cpu" in v or print("hint: no GPU here, but torch", v, "carries CUDA; PIP_ARGS can name an index with the smaller CPU build")'
	@touch $@

study: setup
	$(RUN) snakemake --cores $(CORES) --configfile config/mini.yaml
	$(RUN) snakemake --configfile config/mini.yaml --report results/mini/report.zip
	@echo "The report is in results/mini/report.zip: unpack it and open report.html."

# OPTIONS: of Snakemake, where they are to be others than the last run's; or --host-is-gone (docs/clusters.md).
resume: setup
	@$(RUN) PYTHONPATH=workflow python -m plm_depth resume $(OPTIONS)

# Files go whole to workers, the longest first (tests/conftest.py); workers share the cores. WORKERS=0: one after the other.
test: setup check
	threads=$$($(VENV)/bin/python -c 'import os; print(max(1, (os.cpu_count() or 1) // max(1, $(WORKERS))))'); \
	$(RUN) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$threads} python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup
	$(RUN) ruff format --check workflow tests benchmarks
	$(RUN) ruff check workflow tests benchmarks
	$(RUN) snakefmt --check Snakefile workflow
	cd workflow && $(RUN) lint-imports --config ../pyproject.toml
	$(RUN) snakemake --lint --configfile config/mini.yaml

clean:
	rm -rf results/mini logs/results/mini
