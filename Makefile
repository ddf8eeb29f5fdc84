# Every target sets up what it needs: a virtual environment in .venv and the package in it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test slow shapes lint docs clean

demo: $(INSTALLED)
	$(BIN)/fg-lightning demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# The types and shapes in the signatures, checked in every call of this process; but for the tests that pass what they rule out.
shapes: $(INSTALLED)
	$(BIN)/python -m pytest --jaxtyping-packages=fg_lightning,typechecker.checked -k "not refused" \
		--ignore=tests/callbacks/test_attach.py --ignore=tests/callbacks/test_distributed.py \
		tests/callbacks tests/removal tests/metrics tests/attribution tests/fullgrad/test_saliency.py tests/fullgrad/test_postprocess.py tests/fullgrad/test_readings.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist site fg_demo .mypy_cache .ruff_cache .pytest_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
