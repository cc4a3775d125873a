# make demo   a model learns Shakespeare, speaks, and shows which of its neurons fire
# make tour   a report of all that is known of such a model, in at most ten minutes
# make test   lint, types, all tests
# make bench  measure this machine
# make sanitize   the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# make harness   a task of lm-evaluation-harness, in an environment of its own
# make docs   build the documentation into site/

PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo
TEXT   ?= To be or not to be
TOUR   ?= runs/tour
# a file of tiny-Shakespeare, where it cannot be downloaded
DATA   ?=
# extra words for pip, for example an index that has a CPU-only torch
PIP_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) -c constraints.txt

.PHONY: demo tour test lint types bench sanitize harness docs clean

demo: $(VENV)/.core
	@$(BIN)/bdh train --dataset shakespeare --model-size nano --out-dir $(RUN) --resume-from auto
	@$(BIN)/bdh generate --model $(RUN) --prompt "ROMEO:" --max-new-tokens 300 --seed 1
	@$(BIN)/bdh inspect --model $(RUN) --text "$(TEXT)" --html $(RUN)/report.html

# trains where there is no finished run, so that a second call only writes the report again
tour: $(VENV)/.core
	@$(PIP) -e ".[lens]"
	@$(BIN)/bdh train --dataset tiny-shakespeare $(if $(DATA),--data $(DATA)) --model-size nano --out-dir $(TOUR) --resume-from auto
	@$(BIN)/bdh lens index --model $(TOUR)
	@$(BIN)/bdh lens report --model $(TOUR) --index $(TOUR)-index --out $(TOUR)/report.html --files $(TOUR)/report

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.core
	$(PIP) -e ".[bench]"
	$(BIN)/python benchmarks/parity.py
	$(BIN)/bdh bench

# the kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of their own
sanitize:
	@$(MAKE) --no-print-directory VENV=.venv-sanitize .venv-sanitize/.dev
	.venv-sanitize/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt \
	  -C cmake.define.BDH_SANITIZE=ON -C build-dir=build/sanitize -e .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  UBSAN_OPTIONS=halt_on_error=1 .venv-sanitize/bin/python -m pytest -q -p no:cacheprovider tests/ops/test_native.py tests/ops/test_native_step.py tests/ops/test_lif.py

# the harness brings many packages of its own, which nothing else here is to depend on
harness:
	@$(MAKE) --no-print-directory VENV=.venv-harness .venv-harness/.dev
	.venv-harness/bin/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) -c constraints.txt -e ".[eval]"
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 .venv-harness/bin/python -m pytest -q -p no:cacheprovider tests/evaluation/test_harness.py

docs: $(VENV)/.dev
	$(PIP) -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-sanitize .venv-harness build site .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make environments: apt install python3-venv"; exit 2; }

SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/bdh/csrc/*)

$(VENV)/.core: $(VENV)/bin/python $(SOURCES)
	@echo "Installing into $(VENV) (once; torch is large) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(SOURCES)
	@echo "Installing into $(VENV) (once; torch is large) ..."
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.core
