"""The tests' own environment, set before anything is imported that reads it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)  # tests have a cluster of their own
