# make demo   train the tiny model on phantom radiographs, end to end (SEED=0 OUT=runs/demo-SEED)
# make test   every test but the long ones, in two lanes; the report's need Chromium, see setup/browser.py
# make test-long   simulations, rebuilds, a short campaign: what seldom changes, before a release
# make check  formatting, lint, types
# make check test   both beside each other
# make campaign   kill a run 50 times and compare (12 minutes); docs/interruptions.md
# make clean  remove the environment and caches; runs/ and data/ stay

PYTHON ?= python3
SEED ?= 0
OUT ?= runs/demo-$(SEED)
READY = .venv/rarl-environment-complete

.PHONY: demo test test-long check campaign clean setup browser
MAKEFLAGS += --jobs=2

demo: $(READY)
	.venv/bin/rarl demo --seed $(SEED) --out $(OUT)

# The lanes are told apart in tests/conftest.py.
test: $(READY) browser
	.venv/bin/python -m pytest -n 2 --dist loadgroup

test-long: $(READY)
	.venv/bin/python -m pytest -m long

check: $(READY)
	nice .venv/bin/ruff format --check .
	nice .venv/bin/ruff check .
	nice .venv/bin/mypy

campaign: $(READY)
	.venv/bin/python -m tests.faults.campaign --kills 50 --out runs/faults-$(SEED) --seed $(SEED)

setup: $(READY)

browser:
	@$(PYTHON) setup/browser.py

$(READY): pyproject.toml setup/environment.py setup/torchvision_schemas.py | $(filter clean,$(MAKECMDGOALS))
	$(PYTHON) setup/environment.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
