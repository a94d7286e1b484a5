# Needs only Python >= 3.11. `make quickstart` and `make test` share one environment in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Two files of tests at once, one thread each.
TWO := -n 2 --dist loadfile
FAULTS ?= 80
SEED ?= 0

.PHONY: quickstart test test-slow test-sensitive lint mutants bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cdmem needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --progress-bar off -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PY) -m pip install --progress-bar off -e '.[test]'
	touch $@

$(VENV)/installed-benchmarks: $(VENV)/installed
	$(PY) -m pip install --progress-bar off -e '.[benchmarks]'
	touch $@

$(VENV)/installed-mutants: $(VENV)/installed-test
	$(PY) -m pip install --progress-bar off -e '.[mutants]'
	touch $@

# The whole experiment on scikit-learn's digits: no network, one core, minutes.
quickstart: $(VENV)/installed
	$(PY) -m cdmem study --config configs/quickstart.yaml

test: $(VENV)/installed-test
	$(PY) -m pytest $(TWO)

test-slow: $(VENV)/installed-test
	$(PY) -m pytest $(TWO) -m slow

# Outcomes of training and sampling, quick ones; with other kernels: `ATEN_CPU_CAPABILITY=default make test-sensitive`.
test-sensitive: $(VENV)/installed-test
	$(PY) -m pytest $(TWO) -m 'sensitive and not slow'

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# How many of a sample of planted faults the tests of the pure rooms notice; two at once, about half an hour.
mutants: $(VENV)/installed-mutants
	$(PY) benchmarks/mutants.py $(FAULTS) $(SEED)

# Ratios of time to what other code takes for the same; minutes, on an idle machine.
bench: $(VENV)/installed-benchmarks
	$(PY) benchmarks/speed

clean:
	rm -rf $(VENV) build *.egg-info
