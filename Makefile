# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
BACKBONES := -e backbones/masked_lm -e backbones/causal_lm
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow lint format bench tables pictures docs dist oldest newest clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt backbones/masked_lm/pyproject.toml backbones/causal_lm/pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]" $(BACKBONES)
	touch $@

.venv/.dev: pyproject.toml constraints.txt backbones/masked_lm/pyproject.toml backbones/causal_lm/pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test,lint]" $(BACKBONES)
	touch .venv/.demo $@

.venv/.benchmarks: pyproject.toml constraints.txt backbones/masked_lm/pyproject.toml backbones/causal_lm/pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,benchmarks]" $(BACKBONES)
	touch .venv/.demo $@

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

demo: .venv/.demo  ## tune on the embedded messages and print the comparison
	$(BIN)/softprompt demo

test: .venv/.dev  ## everything that runs in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-slow: .venv/.dev  ## what takes longer: the demo itself, learning on real data sets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.benchmarks  ## speed, as ratios; rewrites results/speed and the tables
	$(BIN)/python benchmarks/step.py --write
	$(BIN)/python benchmarks/layers.py --write
	$(BIN)/python benchmarks/serve.py --write
	$(BIN)/python benchmarks/graph.py --write
	$(BIN)/python benchmarks/load.py --write
	$(BIN)/python benchmarks/topology.py --write
	$(BIN)/python benchmarks/tables.py

tables: .venv/.demo  ## put the numbers of results/ into README and docs
	$(BIN)/python benchmarks/tables.py

pictures: .venv/.dev  ## the pictures of the README; needs chromium and chromium-driver
	$(BIN)/python benchmarks/pictures.py

docs: .venv/.docs  ## this documentation as a site, in site/; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist:  ## wheel and sdist; the wheel alone, in a bare environment, runs each command
	PYTHON=$(PYTHON) .ci/dist

oldest: .venv/.demo  ## the package with each dependency at the lower bound of its range, in a bare environment
	$(BIN)/python .ci/oldest

newest: .venv/.demo  ## and with the newest version of each range
	$(BIN)/python .ci/oldest --newest

clean:
	rm -rf .venv build dist site demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
