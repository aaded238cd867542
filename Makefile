# make demo | test | check | format | setup | lock | bench | clean        (Python 3.11, Linux x86_64, CPU)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PY := .venv/bin/python
# The Python of this machine may sit in another environment: nothing of it may reach ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

TORCH := requirements/torch-cpu.txt
LOCK := requirements/cpu.txt
# .venv is rebuilt when the lock changes or the checkout moves, and left alone otherwise.
STAMP := .venv/.setup-$(shell (cat $(TORCH) $(LOCK); pwd) | sha256sum | cut -c1-16)
# W&B's search engine needs numpy < 2: an environment of its own, rebuilt by the same rule.
SWEEPS := requirements/sweeps.txt
SWEEPS_STAMP := .venv-sweeps/.setup-$(shell (cat $(SWEEPS); pwd) | sha256sum | cut -c1-16)
PIP := $(PY) -m pip --disable-pip-version-check --no-input
HASHED := --no-deps --require-hashes --only-binary :all:

# $(call torch,<pip install or pip download>,<options>): the CPU build from where pip is configured to look
# (a mirror, perhaps); else from PyTorch's own index. The hash makes it the same file.
torch = $(PIP) $(1) -qq $(HASHED) $(2) -r $(TORCH) 2>/dev/null \
	|| $(PIP) $(1) -qq --timeout 30 --retries 2 $(HASHED) $(2) -r $(TORCH) \
	   --index-url $(TORCH_INDEX) \
	|| { echo "make: torch's CPU build was found neither where pip is configured to look nor at" \
	     "$(TORCH_INDEX); is there a network? A mirror: make TORCH_INDEX=URL setup" >&2; exit 1; }

.PHONY: help demo test check format setup lock bench clean

help:
	@echo "make demo    set up, then from nothing to a report on the synthetic platform"
	@echo "make test    set up, then all tests"
	@echo "make check   set up, then ruff, mypy --strict and all tests"
	@echo "make format  set up, then format and fix what ruff can"
	@echo "make setup   .venv with everything that the tests use (CPU build of torch), .venv-sweeps for W&B's search"
	@echo "make lock    resolve pyproject.toml anew into $(LOCK), and $(SWEEPS)"
	@echo "make bench   set up, then measure speed next to its bounds; BENCH=\"items\" for some of it"
	@echo "make clean   remove both environments and caches; runs/ stays"

setup: $(STAMP) $(SWEEPS_STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11" \
	  "or name it: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: $(PYTHON) is" \
	  "$$($(PYTHON) -V), the lock is for Python 3.11; name it: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@echo "make: setting up .venv (about 300 MB; once)"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "make: $(PYTHON) has no venv;" \
	  "on Debian and Ubuntu: apt install python3.11-venv" >&2; exit 1; }
	@$(call torch,install,)
	@$(PIP) install -qq $(HASHED) -r $(LOCK)
	@$(PIP) install -qq --no-deps --no-index --no-build-isolation --editable .
	@$(PIP) check
	@touch $@

$(SWEEPS_STAMP): | $(STAMP)
	@echo "make: setting up .venv-sweeps (about 50 MB; once)"
	@rm -rf .venv-sweeps
	@$(PYTHON) -m venv --without-pip .venv-sweeps
	@$(PIP) --python .venv-sweeps/bin/python install -qq --no-compile $(HASHED) -r $(SWEEPS)
	@touch $@

demo: setup
	$(PY) train.py stage=evaluate experiment=demo

test: setup
	$(PY) -m pytest -n auto --dist loadscope --no-loadscope-reorder

check: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -n auto --dist loadscope --no-loadscope-reorder

format: setup
	$(PY) -m ruff check --fix-only --quiet
	$(PY) -m ruff format

# torch comes as a file, so that the resolver sees the CPU build and never the CUDA packages.
# It runs in the .venv that is there, which lacks what was just added to pyproject.toml.
lock:
	@test -x .venv/bin/pip-compile || { echo "make: no .venv yet: make setup first" >&2; exit 1; }
	@mkdir -p build/torch
	@$(call torch,download,--dest build/torch)
	@grep -o '^torch==[^ ]*' $(TORCH) > build/constraints.txt
	@CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m piptools compile pyproject.toml --all-extras --upgrade -qq \
	  --find-links build/torch --constraint build/constraints.txt --unsafe-package torch --unsafe-package pip \
	  --generate-hashes --strip-extras --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
	  --no-annotate --output-file $(LOCK) 2> >(grep -v 'may be rejected by pip install' >&2 || true)
	@# pip-compile warns of torch, which is left to $(TORCH).
	@echo 'sweeps>=0.3,<0.4' > build/sweeps.in
	@CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m piptools compile build/sweeps.in --upgrade -qq --generate-hashes \
	  --strip-extras --no-emit-find-links --no-emit-index-url --no-emit-trusted-host --no-annotate \
	  --output-file $(SWEEPS)
	@sed -i '/^# WARNING: The following packages were not pinned/,$$d' $(LOCK)

# RecTools needs numpy<2, so it gets an environment of its own.
build/peer:
	@$(PYTHON) -m venv build/peer.partial
	@build/peer.partial/bin/python -m pip install -qq --disable-pip-version-check --no-input \
	  $$(grep -o '^torch==[^ ]*' $(TORCH)) 'rectools[torch]==0.19.0' 'numpy<2' --extra-index-url $(TORCH_INDEX)
	@$(PYTHON) -c 'import os; os.rename("build/peer.partial", "build/peer")'

bench: setup build/peer
	OMP_NUM_THREADS=1 $(PY) -m benchmarks $(BENCH)

clean:
	rm -rf .venv .venv-sweeps build *.egg-info .mypy_cache .ruff_cache .pytest_cache
