# make demo, make test, make check and the like use the environment in .venv, which computes on the CPU, on every machine
#
# make demo   train the tiny model on phantom radiographs, end to end (SEED=0 OUT=runs/demo-SEED)
# make test   the tests, in two lanes beside each other: test-engines, test-quick; some need
#             Chromium, see setup/browser.py
# make test-whole   whole programs, services and clusters from a cold start, ended and continued;
#             with `make test` what continuous integration runs
# make test-long   simulations, rebuilds, a short campaign: what seldom changes; before a release
# make test-2b  the 2B recipe's first two steps at its true size, with random weights, on RARL_VQA_RAD's images; 16 GB, minutes
#             left out where the processor has no instructions for bfloat16 (AVX-512 BF16, AMX)
# make check  formatting, lint, types
# make check test   both, beside each other
# make docs   docs/configuration.md from the comments beside the keys
# make campaign   kill a run 50 times and compare (12 minutes); docs/interruptions.md
# make gpu    the environment in .venv-gpu, which computes on NVIDIA GPUs: .venv-gpu/bin/rarl
# make gpu-smoke   whether training, update and serving work on this machine's GPU; writes a file to attach to a report
# make clean  remove the environments and caches; runs/ and data/ stay

PYTHON ?= python3
SEED ?= 0
OUT ?= runs/demo-$(SEED)
READY = .venv/rarl-environment-complete
GPU_READY = .venv-gpu/rarl-environment-complete
SOURCES = pyproject.toml setup/environment.py setup/torchvision_schemas.py

.PHONY: demo test test-engines test-quick test-whole test-long test-2b check campaign docs clean setup browser gpu gpu-smoke
MAKEFLAGS += --jobs=3

demo: $(READY)
	.venv/bin/rarl demo --seed $(SEED) --out $(OUT)

test: test-engines test-quick

test-engines: $(READY) browser
	.venv/bin/python -m pytest -m "engines and not long and not whole"

# Gives way to the engines, whose processes Ray runs at a niceness of 15, and reports when it is done.
test-quick: $(READY)
	@report=$$(OMP_NUM_THREADS=1 nice -n 19 .venv/bin/python -m pytest -m "not engines and not long and not whole" 2>&1); \
	status=$$?; echo; echo "$$report"; exit $$status

test-whole: $(READY)
	.venv/bin/python -m pytest -m "whole and not long"

test-long: $(READY)
	.venv/bin/python -m pytest -m long

test-2b: $(READY)
	.venv/bin/python -m pytest -m long -s tests/test_two_b.py

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

gpu: $(GPU_READY)

gpu-smoke: $(GPU_READY)
	.venv-gpu/bin/python bench/gpu_smoke.py

$(READY): $(SOURCES) | $(filter clean,$(MAKECMDGOALS))
	$(PYTHON) setup/environment.py

$(GPU_READY): $(SOURCES) | $(filter clean,$(MAKECMDGOALS))
	$(PYTHON) setup/environment.py --gpu

clean:
	rm -rf .venv .venv-gpu build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
