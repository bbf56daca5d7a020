# Each target makes what it needs first. Python 3.11 or newer; uv is used where it is there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= --for 60s
PEERS  := mosquitto mosquitto-clients mbpoll libmodbus-dev socat pkg-config gcc

# Many tests drive real lines and processes in real time. What fails beside three others is run again with the machine
# to itself, and must pass there; it is named, for it is still a defect of the test.
alone = echo "== again, alone: what failed beside others" && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none -v

.PHONY: demo test check bench docs component lock peers clean

demo: $(VENV)/.run
	@$(BIN)/opendcu demo $(DEMO)

test: $(VENV)/.dev peers
	@$(BIN)/python -m pytest -n 4 --dist worksteal $(TEST) || { [ $$? = 1 ] && $(alone); }

check: $(VENV)/.dev
	@$(BIN)/ruff format --check --quiet . || { echo "run: ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell edge_core simulators cloud components recipes tests/unit docs README.md

bench: $(VENV)/.dev
	@for f in benchmarks/[a-z]*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

component: $(VENV)/.run
	@$(BIN)/opendcu component build

# uv where there is one: seconds instead of minutes on a slow box. Hashes are checked either way.
UV := $(shell command -v uv 2>/dev/null)
install = $(if $(UV),VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet $(1),$(BIN)/python -m pip install --quiet --disable-pip-version-check $(1))

# The environment. The run set serves the demo, the dev set adds the tests' and checks' tools.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "OpenDCU needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory deb DEBS=python3-venv
	@$(PYTHON) -m venv $(VENV)
$(VENV)/.run: $(VENV)/bin/python requirements/run.txt pyproject.toml
	@echo "installing OpenDCU into $(VENV) (once) ..."
	@$(call install,--require-hashes -r requirements/run.txt)
	@$(call install,--no-deps -e .)
	@touch $@
$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	@echo "installing the tools of the tests into $(VENV) (once) ..."
	@$(call install,--require-hashes -r requirements/dev.txt)
	@touch $@

# Foreign programs that the tests run against: installed when root, else named.
peers:
	@missing=""; for p in $(PEERS); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then $(MAKE) --no-print-directory deb DEBS="$$missing"; fi
deb:
	@if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(DEBS) >/dev/null; \
	else echo "missing Debian packages; please run: sudo apt-get install$(DEBS)"; exit 1; fi

lock: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --extra all --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet -o requirements/run.txt
	@$(BIN)/uv pip compile pyproject.toml --extra all --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --quiet -o requirements/dev.txt

clean:
	@rm -rf build greengrass-build .mypy_cache .ruff_cache .pytest_cache .hypothesis
