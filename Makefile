# Every target sets up what it needs: on a fresh machine only Python (3.11 or newer) is required.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# glibc gives large freed blocks back to the system after each training step, only to page them in
# again for the next one. Kept, a step on a CPU takes a fraction of the time. Benchmarks run as a
# user's process does, without.
TRAINING := unit experts eval rooms
$(TRAINING): export MALLOC_MMAP_THRESHOLD_ := 4000000000
$(TRAINING): export MALLOC_TRIM_THRESHOLD_ := 8000000000
$(TRAINING): export MALLOC_TOP_PAD_ := 268435456

.PHONY: help demo test lint types unit format experts eval rooms bench bench-check lock clean

help:
	@echo "make demo      build the sample bundle, run it on sample rooms, draw the predictions"
	@echo "make test      lint, types and tests"
	@echo "make experts   train the real NYUv2 experts (DATA=folder; about 40 minutes on 2 cores)"
	@echo "make eval      measure the NYUv2 recipe on its test split (DATA=folder)"
	@echo "make bench     run the project's benchmarks into bench-results (an hour; QUICK=1: minutes)"
	@echo "make bench-check   say what became slower than the committed results"
	@echo "make rooms     train the sample's encoder and experts again (about 30 minutes on 2 cores)"
	@echo "make lock      pin and hash the dependencies again"

$(STAMP): requirements/dev.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python samples/rooms/demo.py

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

experts: $(STAMP)
	$(BIN)/simo-train --recipe nyuv2-vit-tiny.yaml --task all $(if $(DATA),--data $(DATA))

eval: $(STAMP)
	$(BIN)/simo-eval --recipe nyuv2-vit-tiny.yaml --split test $(if $(DATA),--data $(DATA)) --json benchmarks/results/nyuv2-vit-tiny.json

bench: $(STAMP)
	$(BIN)/python -m simo_bench.suite --out bench-results $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

bench-check: $(STAMP)
	$(BIN)/python -m simo_bench.check bench-results

rooms: $(STAMP)
	$(BIN)/python samples/rooms/train.py

lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --output-file requirements/dev.lock requirements/dev.in
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
