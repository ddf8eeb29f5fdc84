# Every target sets up what it needs: a virtual environment in .venv and the package in it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEMO := .venv/installed-demo
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: demo test slow shapes lint docs wheel field clean

# Installs only what the demo needs. Without CUDA: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
demo: $(DEMO)
	$(BIN)/fg-lightning demo

test: $(INSTALLED)
	$(PYTEST)

slow: $(INSTALLED)
	$(PYTEST) -m slow

# Checks the types and shapes in the signatures in every call of this process. An int is a float here, as for every other type checker.
shapes: $(INSTALLED)
	$(PYTEST) -m "not slow and not ill_typed" \
		"--jaxtyping-packages=fg_lightning,beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))" \
		--ignore=tests/callbacks/test_attach.py --ignore=tests/callbacks/test_distributed.py \
		tests/callbacks tests/history tests/recording tests/removal tests/metrics tests/attribution \
		tests/fullgrad/test_saliency.py tests/fullgrad/test_smooth_fullgrad.py tests/fullgrad/test_postprocess.py tests/fullgrad/test_readings.py

# Code, types, spelling, the words and links of pages, and the files that a code host reads.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell --quiet-level=2 *.md benchmarks callbacks docs examples fg_lightning tests
	$(BIN)/python -m tests.check_pages
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Public projects, trained with and without the monitor, in an environment of their own: 8 GB of disk, then about five minutes.
field: .field-env/installed
	.field-env/bin/python benchmarks/field --write docs/field.md

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The files of a release, in dist/, and what the package index will say about them.
wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf .venv .field-env field_runs build dist site fg_demo .mypy_cache .ruff_cache .pytest_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@ $(DEMO)

$(DEMO): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[demo]'
	touch $@

.field-env/installed: pyproject.toml benchmarks/field/requirements.txt
	$(PYTHON) -m venv .field-env
	.field-env/bin/python -m pip install --editable . --requirement benchmarks/field/requirements.txt
	touch $@
