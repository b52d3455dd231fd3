# Everything is set up in .venv; every recipe quotes its paths, so a checkout may contain spaces.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= build/demo
# The Hub's own reader of GGUF, which the tests there run on Node.
READERS := tests/readers
READERS_STAMP := $(READERS)/node_modules/.installed
# Words of the titles of those sections that `make bench` is to run; all without.
ONLY ?=
# Of `make fuzz`, for all readers together.
FUZZ_SECONDS ?= 3600

# What results are compared with, apart from quantkit: llama.cpp's own converter and programs, and
# transformers.
ORACLE := .oracle
ORACLE_VENV := $(ORACLE)/venv
ORACLE_STAMP := $(ORACLE)/.installed
SOURCE_STAMP := $(ORACLE)/.source
TOOLS_STAMP := $(ORACLE)/.tools
TOOLS_BUILD := $(ORACLE)/build
TOOLS := llama-imatrix llama-quantize llama-perplexity llama-server ggml-rpc-server
# The installed library is a Release build for this CPU too; the rest is what the tools do without,
# the server's web pages among it, which would be downloaded.
TOOLS_OPTIONS := -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_RPC=ON -DLLAMA_OPENSSL=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_APP=OFF \
	-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
QUANTKIT_LLAMA_CPP ?= $(CURDIR)/$(ORACLE)/llama.cpp
QUANTKIT_LLAMA_TOOLS ?= $(CURDIR)/$(TOOLS_BUILD)/bin
QUANTKIT_TORCH_PYTHON ?= $(CURDIR)/$(ORACLE_VENV)/bin/python
export QUANTKIT_LLAMA_CPP QUANTKIT_LLAMA_TOOLS QUANTKIT_TORCH_PYTHON

.PHONY: demo test check format slow fuzz bench oracle oracle-tools clean clean-demo

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("quantkit needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x "$(BIN)/python" || $(PYTHON) -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q --upgrade "pip>=25.1"
	@echo "installing into $(VENV); the first time llama.cpp is compiled, which takes some minutes"
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q -c constraints.txt -e . --group dev
	@touch "$(STAMP)"

# Without npm nothing is made, so that it is looked for again the next time.
$(READERS_STAMP): $(READERS)/package.json $(READERS)/package-lock.json $(READERS)/.npmrc
	@if command -v npm >/dev/null; then \
		npm ci --prefix "$(READERS)" --no-audit --no-fund --ignore-scripts --loglevel=error >/dev/null && \
		touch "$(READERS_STAMP)"; \
	else \
		echo "no npm on PATH: the tests in $(READERS), which need it, will be skipped"; \
	fi

$(ORACLE_VENV):
	@$(PYTHON) -m venv "$(ORACLE_VENV)"

$(SOURCE_STAMP): constraints.txt scripts/fetch_llama_cpp.py | $(STAMP)
	@"$(BIN)/python" scripts/fetch_llama_cpp.py "$(ORACLE)/llama.cpp"
	@touch "$(SOURCE_STAMP)"

$(ORACLE_STAMP): tests/models/families/oracle-requirements.txt constraints.txt | $(SOURCE_STAMP) $(ORACLE_VENV)
	@echo "installing torch and transformers into $(ORACLE_VENV), for comparison only"
	@"$(ORACLE_VENV)/bin/python" -m pip install --disable-pip-version-check -q -r tests/models/families/oracle-requirements.txt
	@touch "$(ORACLE_STAMP)"

# The source's dates are the same in every version, so nothing of another build may be left.
$(TOOLS_STAMP): $(SOURCE_STAMP) | $(ORACLE_VENV)
	@command -v cmake >/dev/null || "$(ORACLE_VENV)/bin/python" -m pip install --disable-pip-version-check -q cmake
	@echo "building $(TOOLS) into $(TOOLS_BUILD), which takes some minutes"
	@rm -rf "$(TOOLS_BUILD)" && mkdir -p "$(TOOLS_BUILD)"
	@PATH="$$PATH:$(CURDIR)/$(ORACLE_VENV)/bin"; { \
		cmake -S "$(ORACLE)/llama.cpp" -B "$(TOOLS_BUILD)" $(TOOLS_OPTIONS) && \
		cmake --build "$(TOOLS_BUILD)" --parallel "$$(nproc)" --target $(TOOLS); \
	} >"$(TOOLS_BUILD)/build.log" 2>&1 || { tail -n 30 "$(TOOLS_BUILD)/build.log"; exit 1; }
	@touch "$(TOOLS_STAMP)"

oracle: $(ORACLE_STAMP)

oracle-tools: $(TOOLS_STAMP)

demo: $(STAMP)
	@"$(BIN)/quantkit" build --target 4x3090 --model demo --out "$(DEMO_OUT)"

# A file's tests stay together: they share what took long to make.
test: $(STAMP) $(READERS_STAMP)
	"$(BIN)/python" -m pytest -n logical --maxprocesses 4 --dist loadfile

check: $(STAMP)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

format: $(STAMP)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

slow: $(STAMP) $(ORACLE_STAMP) $(TOOLS_STAMP)
	"$(BIN)/python" -m pytest -m slow

# atheris has wheels for some versions of Python only; its sources would need clang.
fuzz: $(STAMP)
	@"$(BIN)/python" -m pip install --disable-pip-version-check -q --only-binary atheris -c constraints.txt --group fuzz || echo "no atheris: inputs are not guided by the lines that they reach"
	PYTHONPATH=scripts:tests/support:tests/fuzz "$(BIN)/python" scripts/fuzz.py --seconds $(FUZZ_SECONDS)

bench: $(STAMP) $(ORACLE_STAMP) $(TOOLS_STAMP)
	PYTHONPATH=scripts "$(BIN)/python" benchmarks/run.py $(ONLY)

# Only what was set up here: build/ is where people keep their artifacts, and DEMO_OUT may be anywhere.
clean:
	rm -rf "$(VENV)" "$(ORACLE)" "$(READERS)/node_modules"
	@if test -e build; then echo "kept: build, which holds artifacts; 'make clean-demo' removes build/demo"; fi

clean-demo:
	rm -rf build/demo
