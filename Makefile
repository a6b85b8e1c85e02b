# Every target says what it does: `make help`.
PYTHON ?= python3
PY = .venv/bin/python
export MAILFLEET_HOME ?= $(CURDIR)/.demo/home

.DEFAULT_GOAL := help
.PHONY: help demo up down test lint fmt bench bench-dispatch bench-audience e2e fleet lock setup setup-demo clean

help:  ## say what each target does
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

demo: setup-demo  ## a whole campaign through Airflow on this machine: 20,000 contacts, three dispatch servers
	$(PY) -m examples.demo.run

up: setup-demo  ## leave the demo running (localhost): Airflow, inbox, preview, an unsent campaign to play with
	$(PY) -m examples.demo.up

down:  ## stop what `make up` started
	@if [ -x $(PY) ]; then $(PY) -m examples.demo.down; fi

test: setup  ## all tests, on SQLite and a private MariaDB, with a real Airflow
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 40 -m "not airflow and not long" $(ARGS)
	$(PY) -m pytest --durations 12 -m "airflow and not fleet" $(ARGS)  # each of these keeps two cores busy by itself
	$(PY) -m pytest tests/e2e/test_fleet.py  # one host and 400 people: the smoke of `make e2e`

lint: setup  ## ruff, mypy --strict, import-linter, ansible-lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict mailer_lib
	.venv/bin/lint-imports
	cd include/playbooks && PATH="$(CURDIR)/.venv/bin:$$PATH" ansible-lint -q --offline --profile production .

fmt: setup  ## format, and fix what ruff can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: bench-dispatch  ## the same as bench-dispatch

bench-dispatch: setup  ## the agent against peers and limits in the same run: N=20000 recipients; exit 1 when a bar is missed
	$(PY) -m bench.dispatch

bench-audience: setup  ## snapshots, imports, criteria, questions, on a private MariaDB: N=1000000 people; exit 1 when a bar is missed
	$(PY) -m bench.audience

e2e: setup  ## three bare hosts, provisioned, verified, and 10,000 over SSH from Airflow, then faults (root; HOSTS=3)
	MAILFLEET_E2E_HOSTS=$(or $(HOSTS),3) MAILFLEET_E2E_PEOPLE=$(or $(PEOPLE),10000) $(PY) -m pytest -s tests/e2e/test_fleet.py tests/e2e/test_fleet_faults.py
	$(PY) -m pytest -s tests/plugins/test_fifty_slots.py

fleet: setup  ## bare Debian hosts and mailbox providers on this machine, to play with (root); Ctrl-C ends it
	$(PY) -m tests.hosts

lock: setup  ## resolve pyproject.toml into the three hashed locks
	$(PY) .ci/lock.py

setup:  ## OS packages where we may, then .venv from requirements-dev.txt
	@$(PYTHON) .ci/setup.py dev

setup-demo:  ## .venv from requirements-demo.txt: no apt, no root, no compiler
	@$(PYTHON) .ci/setup.py demo

clean: down  ## remove the demo's state
	rm -rf .demo
