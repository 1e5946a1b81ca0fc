# `make help` lists the targets. Each makes what it needs, from nothing but make and a python3 of 3.11 or above;
# when nothing changed, that costs a few milliseconds.

PYTHON ?= python3
ARGS ?=

venv := .venv
py := $(venv)/bin/python
run_files := requirements.txt requirements-sample.txt
dev_files := $(run_files) requirements-scale.txt requirements-dev.txt
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint format sim pages trees worlds chaos mutations bench docs pictures translations clean run-packages dev-packages

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-14s %s\n' "$$target" "$$text"; done
	@printf '%s\n' '' "ARGS='…' is passed on: make test ARGS='-k allocator', make bench ARGS=noop" \
		"PYTHON=… is the interpreter that .venv is made with: make clean test PYTHON=python3.13"

demo: run-packages ## a parent and three children import real market data, with a live page
	@$(py) manage.py demo $(ARGS)

serve: run-packages ## a parent on port 8000, for real use
	@$(py) manage.py runserver $(ARGS)

test: dev-packages ## all tests but those of `make pages` and `make trees`, and those where verbs race on PostgreSQL, too
	@$(py) -m $(if $(ARGS),pytest $(ARGS),tests.whole)

# Django's own commands get a folder and settings that are nobody's.
lint: export CASCADE_DATA_DIR := $(venv)/lint
lint: export CASCADE_CONFIG :=
lint: dev-packages ## style, types, import directions, migrations
	$(py) -m ruff check .
	$(py) -m ruff format --check .
	$(py) -m mypy
	$(py) $(venv)/bin/lint-imports
	$(py) manage.py check
	$(py) manage.py makemigrations --check --dry-run

format: dev-packages ## put the code into the style that lint wants
	@$(py) -m ruff check --fix .
	@$(py) -m ruff format .

sim: dev-packages ## the promises in simulated worlds and trees that fail: SEED=7 or SEED=t7 replays one, SEEDS=5000 runs so many
	@$(py) -m tests.sim $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

pages: dev-packages ## the pages in a real Chromium, clicked through; CI runs them beside `make test`
	@$(py) -m pytest -n 2 --dist loadfile tests/browser

trees: dev-packages ## real trees of relays, killed, cut off and moved; CI runs them beside `make test`
	@$(py) -m pytest -n 2 --dist loadfile -m "trees and not long" tests/acceptance

worlds: dev-packages ## what CI runs beside `make test`: 500 simulated worlds with one parent, and 500 trees of relays
	@$(py) -m tests.sim --kind plain --from 100 --seeds 400 --jobs 2
	@$(py) -m tests.sim --kind tree --from 50 --seeds 450 --jobs 2

chaos: dev-packages ## the promises with real processes, killed, frozen and cut off: MINUTES=10
	@$(py) -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

mutations: dev-packages ## takes each defence out in a copy, and shows which test turns red
	@$(py) -m tests.mutations $(ARGS)

bench: dev-packages ## measurements beside dask.distributed
	@$(py) -m bench $(ARGS)

docs: run-packages ## the pages of reference in docs/, made of the code: settings, commands, HTTP API, metrics
	@$(py) -m cascade.reference

pictures: dev-packages ## the pictures of the pages in docs/, taken of a parent at work; needs Chromium: ARGS='overview run'
	@$(py) -m tests.pictures $(ARGS)

translations: dev-packages ## the catalogue of the pages' words: what is new is added, and all of it is compiled
	@$(py) -m tests.translations

clean: ## remove .venv and caches; data/ stays
	rm -rf $(venv) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is kept as a copy of the files asked for. Contents are compared, not times,
# which a git checkout changes. `dev` includes `run`, so both are noted when it was installed.

run-packages:
	@cat $(run_files) | cmp -s - $(venv)/run.installed && $(py) -c '' 2> /dev/null || { \
		$(make_venv) && $(call install,requirements-sample.txt) && cat $(run_files) > $(venv)/run.installed; }

dev-packages:
	@cat $(dev_files) | cmp -s - $(venv)/dev.installed && $(py) -c '' 2> /dev/null || { \
		$(make_venv) && $(call install,requirements-dev.txt) && \
		cat $(run_files) > $(venv)/run.installed && cat $(dev_files) > $(venv)/dev.installed; }

install = echo "Installing packages into $(venv) (the first time that takes about a minute) …" && \
	$(py) -m pip install -qq --no-input --disable-pip-version-check -r $(1)

# A .venv whose python is gone or cannot install is made anew. Debian's python3 comes without ensurepip
# but may have a pip of its own, which serves as well.
define make_venv
{ $(py) -m pip --version > /dev/null 2>&1 || { \
	command -v "$(PYTHON)" > /dev/null || { \
		echo "$(PYTHON) was not found. Cascade needs Python 3.11 or above: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1). Cascade needs Python 3.11 or above:" \
			"make PYTHON=/path/to/python3" >&2; exit 1; }; \
	rm -rf $(venv); \
	if "$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null; then "$(PYTHON)" -m venv $(venv); \
	else "$(PYTHON)" -m venv --without-pip $(venv) && "$(PYTHON)" -m pip --python $(venv) install --quiet pip; \
	fi > $(venv).log 2>&1 || { \
		echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; \
		cat $(venv).log >&2; rm -rf $(venv) $(venv).log; exit 1; }; \
	rm -f $(venv).log; \
}; }
endef
