# Needs Python 3.11 or newer, pip and make. PYTHON=... names another interpreter than python3.
.PHONY: demo test setup lint docs bench clean

demo:   ## an answer, and a verdict on each of its claims while it is written, on this machine
	@scripts/setup demo
	.venv/bin/python -m examples.verification

test: setup   ## every test
	.venv/bin/python -m pytest

setup:  ## .venv with everything a developer needs; a second run does nothing
	@scripts/setup dev

lint: setup   ## what CI checks without running anything
	@scripts/check

docs: setup   ## build/docs/index.html
	.venv/bin/python -m sphinx -n -W --keep-going -q -b html docs build/docs

bench: setup   ## short forms of the benchmarks, and what became of each goal; some minutes
	.venv/bin/python -m bench

clean:  ## back to a fresh clone
	rm -rf .venv build dist .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
