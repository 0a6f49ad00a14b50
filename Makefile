# Each target makes what it needs: on a fresh machine, `make demo` and `make test` are the only commands.
#
#   make demo      set up, export real weights, ask them about pictures
#   make test      set up, run the tests
#   make check     ruff, ruff format, mypy
#   make format    let ruff mend what it can
#   make bench     set up, compile llama.cpp, measure SmolLM2-135M in turns with it; BENCH=BUNDLE measures another
#   make verify    set up, compile llama.cpp, the long checks: resumable, one JSON line each
#   make clean     remove the virtual environment and caches of tools
#
# PYTHON       interpreter that the virtual environment is made from (3.11 to 3.13)
# TORCH_INDEX  package index that torch comes from; torch's install page names one for its small CPU build
# JOBS         test processes

PYTHON ?= python3
JOBS ?= 2
TORCH_INDEX ?=
HANDLENS_CACHE ?= $(HOME)/.cache/handlens
export HANDLENS_CACHE

VENV := .venv
PY := $(VENV)/bin/python
HANDLENS := $(VENV)/bin/handlens
STAMP := $(VENV)/.installed
DEMO := $(HANDLENS_CACHE)/demo
# A demo bundle older than the exporter's code is made again.
EXPORTER := $(wildcard export/handlens_export/*.py export/handlens_export/*/*.py export/handlens_export/*/*/*.py \
  runtime/handlens_runtime/manifest.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench check format verify clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "HandLens needs Python 3.11 to 3.13, and '$(PYTHON)' is not: name another, as in 'make $(MAKECMDGOALS) PYTHON=python3.12'." >&2; exit 2; }
	@echo "Setting up $(VENV): some minutes, once."
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	if [ -n "$(TORCH_INDEX)" ]; then $(PY) -m pip install --quiet --index-url "$(TORCH_INDEX)" torch==2.13.0; fi
	$(PY) -m pip install --quiet -e ".[export,dev]"
	@touch $@

READER := assets/reader
SAMPLES := $(READER)/samples

demo: $(STAMP) $(DEMO)/reader/manifest.json $(DEMO)/smollm2/manifest.json
	@$(PY) -c 'import json; [print(*(json.loads(line)[key] for key in ("image", "question", "answer")), sep="\t") \
	  for line in open("$(SAMPLES)/questions.jsonl")]' | while IFS="$$(printf '\t')" read -r image question answer; do \
	  echo && echo "Picture: $(SAMPLES)/$$image. Question: $$question (It says: $$answer)"; \
	  $(HANDLENS) run "$(DEMO)/reader" --image "$(SAMPLES)/$$image" --show-tiles "$(DEMO)/$$image.tiles.png" "$$question" \
	    --max-tokens 40 < /dev/null || exit 1; \
	done
	@echo && echo "It is not right every time yet, see $(READER)/README.md. The tiles that were chosen: $(DEMO)/*.tiles.png"
	@echo && echo "SmolLM2-135M-Instruct, 4 bits. Question: What is the capital of France?"
	@$(HANDLENS) run "$(DEMO)/smollm2" "What is the capital of France?" --max-tokens 40

# The reader was trained here, and not to its end: the gate asks for what it reaches. assets/reader/README.md has more.
GATE ?= 0.5
$(DEMO)/reader/manifest.json: $(EXPORTER) $(READER)/model.safetensors | $(STAMP)
	$(HANDLENS) export "$(READER)" -o "$(DEMO)/reader" --gate "$(READER)/gate/questions.jsonl" --gate-accuracy $(GATE) --force

# SmolLM2 for ONNX Runtime alone: its .pte takes minutes to lower, the reader's one.
$(DEMO)/smollm2/manifest.json: $(EXPORTER) | $(STAMP)
	@gguf="$$($(PY) -m handlens_export.materials smollm2)" && \
	$(HANDLENS) export "$$gguf" -o "$(DEMO)/smollm2" --context 1024 --backend onnx --force

# Real weights are fetched once; the tests themselves need no network.
test: $(STAMP)
	@$(PY) -m handlens_export.materials smollm2
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(TESTS)

# Compiling takes some minutes, once. SmolLM2 for both backends, with room for the deepest test: 2,048 and 16 tokens.
BENCH ?= $(HANDLENS_CACHE)/bench/smollm2
bench: $(VENV)/.bench $(if $(filter $(HANDLENS_CACHE)/bench/smollm2,$(BENCH)),$(HANDLENS_CACHE)/bench/smollm2/manifest.json)
	@$(HANDLENS) bench "$(BENCH)" --vs llama.cpp

$(VENV)/.bench: $(STAMP)
	$(PY) -m pip install --quiet -e ".[bench]"
	@touch $@

$(HANDLENS_CACHE)/bench/smollm2/manifest.json: $(EXPORTER) | $(STAMP)
	@gguf="$$($(PY) -m handlens_export.materials smollm2)" && \
	$(HANDLENS) export "$$gguf" -o "$(HANDLENS_CACHE)/bench/smollm2" --context 2064 --force

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The quantizers are compared with llama.cpp's own, hence the same compiling as for bench.
verify: $(VENV)/.bench
	@$(PY) -m handlens_export.materials smollm2 moby-dick debian-handbook
	$(PY) tests/verify/run.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
