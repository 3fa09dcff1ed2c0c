# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo run cluster audit image down status doctor check test test-long chaos format clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'
	@echo "  make run SOURCE=folder AS_OF=2026-11-23 [SETTINGS=file.toml] [PROFILE=smoke|standard|full]"

# The lock is complete, so it is installed as it stands, without looking for versions that fit; a check says so if they
# do not. torch is asked for again because its CUDA build needs parts that its CPU build of the same version does without.
# Compiling takes as long as all the rest, hence once, on all cores.
setup: $(STAMP) ## the virtual environment, from the committed lock

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed and '$(PYTHON)' is not there. Install it, or say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed; '$(PYTHON)' is $$($(PYTHON) --version). Say where 3.11 is: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 2**30; sys.exit(free < 6 and not print(f"{free:.1f} GiB of disk are free here and about 6 are needed; make room or clone elsewhere"))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --no-compile --requirement constraints.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	@$(BIN)/pip check || { echo "constraints.txt does not hold what its own packages ask for; see how it is made in its first lines"; exit 1; }
	@$(BIN)/python -m compileall -q -q -j 0 $(VENV)/lib || true
	@touch $(STAMP)

demo: $(STAMP) ## sample data, Airflow, MLflow, one real run, recommendations; the UIs stay up
	@$(BIN)/audiorec demo

run: $(STAMP) ## the DAG for one date on your own tables: SOURCE=... AS_OF=...
	@test -n "$(AS_OF)" || { echo "say which date: make run SOURCE=folder AS_OF=2026-11-23 [SETTINGS=file.toml]"; exit 2; }
	@$(BIN)/audiorec run --as-of $(AS_OF) $(if $(SOURCE),--source $(SOURCE)) $(if $(SETTINGS),--settings $(SETTINGS)) $(if $(PROFILE),--profile $(PROFILE))

cluster: $(STAMP) ## the same DAG on Celery, Postgres, Redis and an S3 store, all on this machine (Debian packages)
	@$(BIN)/audiorec cluster

audit: $(STAMP) ## known advisories against the lock, and a list of what is installed (SBOM)
	@$(BIN)/python -m audiorec.audit $(foreach id,$(IGNORE),--ignore $(id))

image: $(STAMP) ## build the container image without an engine and run each entry point (root, buildah, debootstrap)
	@$(BIN)/python docker/image.py

down: ## end the services that were started here
	@if [ -x $(BIN)/audiorec ]; then $(BIN)/audiorec down; else echo "nothing was set up here"; fi

status: $(STAMP) ## services, champion, results by date
	@$(BIN)/audiorec status

doctor: $(STAMP) ## say what is wrong with this set-up
	@$(BIN)/audiorec doctor

check: $(STAMP) ## ruff, types, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: $(STAMP) ## the tests, two files at a time; those with a browser need Chromium
	$(BIN)/pytest -n 2 -m "not long"

test-long: $(STAMP) ## the tests that take minutes each: whole days in Airflow, real data, kills
	$(BIN)/pytest -n 2 -m long

chaos: $(STAMP) ## reliability experiments, up to two hours in three lanes, resumable; writes docs/results/chaos.md
	$(BIN)/python -m benchmarks.chaos

format: $(STAMP) ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: down ## remove everything that a run left, and the environment
	rm -rf .audiorec $(VENV)
