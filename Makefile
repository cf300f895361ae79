# `make demo` and `make test` build .venv first, and install again when pyproject.toml has changed.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test

demo: $(VENV)/.installed-plot
	$(VENV)/bin/titans demo --force

# One thread: on tensors as small as a test's, threads cost more in waiting than they bring.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

# What the tests need includes what the demo needs.
$(VENV)/.installed-%: pyproject.toml $(VENV)/bin/python
	@echo "Installing titans-toolkit[$*] in $(VENV): minutes and gigabytes the first time."
	$(PIP) --editable '.[$*]'
	@touch $@ $(if $(filter test,$*),$(VENV)/.installed-plot)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo not there): name another, as in" \
	    "make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 2; }
