"""The tests' own environment, set before anything is imported that reads it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)  # tests have a cluster of their own
IN_A_LANE = "PYTEST_XDIST_WORKER" in os.environ
if IN_A_LANE:
    # PyTorch's threads wait actively, for a core that the other lane needs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
