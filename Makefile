# make demo   train the tiny model on phantom radiographs, end to end (SEED=0 OUT=runs/demo-SEED)
# make test   every test but the long ones, in two lanes beside each other: test-engines, test-quick;
#             some need Chromium, see setup/browser.py
# make test-long   simulations, rebuilds, a short campaign: what seldom changes; before a release
# make check  formatting, lint, types
# make check test   both, beside each other
# make docs   docs/configuration.md from the comments beside the keys
# make campaign   kill a run 50 times and compare (12 minutes); docs/interruptions.md
# make clean  remove the environment and caches; runs/ and data/ stay

PYTHON ?= python3
SEED ?= 0
OUT ?= runs/demo-$(SEED)
READY = .venv/rarl-environment-complete

.PHONY: demo test test-engines test-quick test-long check campaign docs clean setup browser
MAKEFLAGS += --jobs=2

demo: $(READY)
	.venv/bin/rarl demo --seed $(SEED) --out $(OUT)

test: test-engines test-quick

test-engines: $(READY) browser
	.venv/bin/python -m pytest -m "engines and not long"

# Gives way to the engines, whose processes Ray runs at a niceness of 15, and reports when it is done.
test-quick: $(READY)
	@report=$$(OMP_NUM_THREADS=1 nice -n 19 .venv/bin/python -m pytest -m "not engines and not long" 2>&1); \
	status=$$?; echo; echo "$$report"; exit $$status

test-long: $(READY)
	.venv/bin/python -m pytest -m long

check: $(READY)
	nice -n 19 .venv/bin/ruff format --check .
	nice -n 19 .venv/bin/ruff check .
	nice -n 19 .venv/bin/mypy

campaign: $(READY)
	.venv/bin/python -m tests.faults.campaign --kills 50 --out runs/faults-$(SEED) --seed $(SEED)

docs: $(READY)
	.venv/bin/python setup/configuration_page.py

setup: $(READY)

browser:
	@$(PYTHON) setup/browser.py

$(READY): pyproject.toml setup/environment.py setup/torchvision_schemas.py | $(filter clean,$(MAKECMDGOALS))
	$(PYTHON) setup/environment.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
