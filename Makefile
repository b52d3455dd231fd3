# Everything is set up in .venv; every recipe quotes its paths, so a checkout may contain spaces.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= build/demo

.PHONY: demo test check format slow bench clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("quantkit needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x "$(BIN)/python" || $(PYTHON) -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q --upgrade "pip>=25.1"
	@echo "installing into $(VENV); the first time llama.cpp is compiled, which takes some minutes"
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q -c constraints.txt -e . --group dev
	@touch "$(STAMP)"

demo: $(STAMP)
	@"$(BIN)/quantkit" build --target 4x3090 --model demo --out "$(DEMO_OUT)"

test: $(STAMP)
	"$(BIN)/python" -m pytest

check: $(STAMP)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

format: $(STAMP)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

slow: $(STAMP)
	"$(BIN)/python" -m pytest -m slow

bench: $(STAMP)
	"$(BIN)/python" benchmarks/run.py

clean:
	rm -rf "$(VENV)" build
