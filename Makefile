# make transcribe [AUDIO=FILE]   print the words of a recording
# make test                      run the tests
# Both set up .venv first, on a fresh machine too; everything but the result goes to standard error.
# PYTHON=python3.12 picks the interpreter (3.11 or newer). pip's own configuration is honoured.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help transcribe test test-slow lint format demo clean

VENV := .venv
BIN := $(VENV)/bin
AUDIO ?= tests/data/librispeech-2277-149897-0027.mp3
HOST ?= 127.0.0.1
PORT ?= 7860
export AUDIO PYTHON

help:
	@sed -n "1,4s/^# //p" Makefile
	@echo 'Also: make lint, format, demo [PORT=7860], test-slow, clean'

transcribe: $(VENV)/.core
	@$(BIN)/python transcribe.py -- "$$AUDIO"

test: $(VENV)/.dev
	@$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	@$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

demo: $(VENV)/.demo
	@$(BIN)/python app.py --host "$(HOST)" --port "$(PORT)"

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# A stamp file says that a set of packages is installed; a change of pyproject.toml installs it again.
$(VENV)/.core: PACKAGE = .
$(VENV)/.demo: PACKAGE = .[demo]
$(VENV)/.dev: PACKAGE = .[dev]

# torch first and alone: its version range decides, no other package's wish for a newer build.
$(VENV)/.core $(VENV)/.demo $(VENV)/.dev: pyproject.toml | $(VENV)/.created
	@echo 'Installing into $(VENV); the first time takes some minutes' >&2
	@torch=$$($(BIN)/python -c 'import tomllib; print(*(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d.startswith("torch>")))') && \
	$(BIN)/python -m pip install --quiet "$$torch" >&2 && \
	$(BIN)/python -m pip install --quiet --editable '$(PACKAGE)' >&2
	@touch $@

# An environment that is already there and works is kept.
$(VENV)/.created:
	@if $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then exit 0; fi; \
	python=; for candidate in $${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "samba-asr needs Python 3.11 or newer; tried: $${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}." >&2; \
		echo "Install one, or name yours: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	rm -rf $(VENV); \
	if ! "$$python" -m venv $(VENV) >&2; then \
		rm -rf $(VENV); \
		echo "$$python could not make a virtual environment (on Debian and Ubuntu: install python3-venv)." >&2; exit 1; \
	fi
	@touch $@
