# Everything is set up in .venv; every recipe quotes its paths, so a checkout may contain spaces.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= build/demo

# What results are compared with: llama.cpp's own converter and transformers, apart from quantkit.
ORACLE := .oracle
ORACLE_STAMP := $(ORACLE)/.installed
QUANTKIT_LLAMA_CPP ?= $(CURDIR)/$(ORACLE)/llama.cpp
QUANTKIT_TORCH_PYTHON ?= $(CURDIR)/$(ORACLE)/venv/bin/python
export QUANTKIT_LLAMA_CPP QUANTKIT_TORCH_PYTHON

.PHONY: demo test check format slow bench oracle clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("quantkit needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x "$(BIN)/python" || $(PYTHON) -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q --upgrade "pip>=25.1"
	@echo "installing into $(VENV); the first time llama.cpp is compiled, which takes some minutes"
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q -c constraints.txt -e . --group dev
	@touch "$(STAMP)"

$(ORACLE_STAMP): tests/families/oracle-requirements.txt constraints.txt | $(STAMP)
	@mkdir -p "$(ORACLE)"
	@$(PYTHON) -m venv "$(ORACLE)/venv"
	@echo "installing torch and transformers into $(ORACLE)/venv, for comparison only"
	@"$(ORACLE)/venv/bin/python" -m pip install --disable-pip-version-check -q -r tests/families/oracle-requirements.txt
	@"$(BIN)/python" scripts/fetch_converter.py "$(ORACLE)/llama.cpp"
	@touch "$(ORACLE_STAMP)"

oracle: $(ORACLE_STAMP)

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

slow: $(STAMP) $(ORACLE_STAMP)
	"$(BIN)/python" -m pytest -m slow

bench: $(STAMP) $(ORACLE_STAMP)
	PYTHONPATH=scripts "$(BIN)/python" benchmarks/run.py

clean:
	rm -rf "$(VENV)" "$(ORACLE)" build
