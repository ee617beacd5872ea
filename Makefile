# make demo   train the tiny model on phantom radiographs, end to end (SEED=0 OUT=runs/demo-SEED)
# make test   every test, slow ones included; the report's need Chromium, see setup/browser.py
# make check  formatting, lint, types
# make campaign   kill a run 50 times and compare (12 minutes); docs/interruptions.md
# make clean  remove the environment and caches; runs/ and data/ stay

PYTHON ?= python3
SEED ?= 0
OUT ?= runs/demo-$(SEED)
READY = .venv/rarl-environment-complete

.PHONY: demo test check campaign clean setup browser

demo: $(READY)
	.venv/bin/rarl demo --seed $(SEED) --out $(OUT)

test: $(READY) browser
	.venv/bin/python -m pytest

check: $(READY)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

campaign: $(READY)
	.venv/bin/python -m tests.faults.campaign --kills 50 --out runs/faults-$(SEED) --seed $(SEED)

setup: $(READY)

browser:
	@$(PYTHON) setup/browser.py

$(READY): pyproject.toml setup/environment.py setup/torchvision_schemas.py
	$(PYTHON) setup/environment.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
