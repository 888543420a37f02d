# Needs Python 3.11 or newer, pip and make. PYTHON=... names another interpreter than python3.
.PHONY: demo check test setup lint docs bench clean help

demo:   ## a small model answers on this machine, and each claim is verified meanwhile
	@scripts/setup demo
	.venv/bin/python -m examples.verification

check: setup   ## while you work: format, lint, types, and the tests of changed files
	@.venv/bin/ruff format --quiet .
	@scripts/check
	@.venv/bin/python -m pytest -q -m "not vllm" $$(.venv/bin/python scripts/changed_tests.py)

test: setup   ## every test, on all cores
	.venv/bin/python -m pytest

setup:  ## .venv with everything that development needs; a second run does nothing
	@scripts/setup dev

lint: setup   ## style, imports and types
	@scripts/check

docs: setup   ## build/docs/index.html
	.venv/bin/python -m sphinx -n -W --keep-going -q -b html docs build/docs

bench: setup   ## short forms of the benchmarks, and which goals hold; takes minutes
	.venv/bin/python -m bench

clean:  ## remove everything that is not in a fresh clone
	rm -rf .venv .venv-* build dist .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:   ## this list
	@sed -n 's/^\([a-z]*\):[a-z ]*## */\1\t/p' Makefile | expand -t 8
