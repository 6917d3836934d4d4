# Everything is installed into .venv, from the versions that were tested (constraints.txt).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The models of the tests are small: one thread for each of two workers.
export OMP_NUM_THREADS = 1

.PHONY: demo test test-slow test-lowest fuzz docs bench-peers lint sbom clean

demo: $(VENV)/installed
	$(BIN)/elbowroom demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "slow or not slow"

# Bytes of each file of a run folder, changed for SECONDS each; with atheris where it is installed.
LOADERS = config.json run.json diagnostics.json request.json history.csv params.safetensors \
	posterior.nc data.parquet data.npz manifest.json checkpoint
SECONDS ?= 600
fuzz: $(VENV)/installed
	for name in $(LOADERS); do \
		$(BIN)/python tests/run/test_fuzzed_loaders.py $$name $(SECONDS) || exit 1; \
	done

docs: $(VENV)/installed
	$(BIN)/python docs/index.py

bench-peers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	$(BIN)/python benchmarks/steps.py --compile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In a new folder, with the lowest versions of everything but torch.
test-lowest:
	rm -rf build/lowest
	$(PYTHON) .ci/lowest.py build/lowest

# What is in the environment, with versions, licences and what needs what, as CycloneDX has it.
sbom: $(VENV)/installed
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet cyclonedx-bom
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file build/sbom.json $(BIN)/python

# torch first: its own build is chosen before anything else can ask for another.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Elbowroom needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
