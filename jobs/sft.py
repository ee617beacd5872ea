"""Supervised fine-tuning under Ray: ray job submit --working-dir . -- python jobs/sft.py CONFIG
[key=value …]

The same as `rarl sft`; the run directory must be on storage that every node sees.
"""

import typer

from rarl.cli import run_and_explain, sft

if __name__ == "__main__":
    run_and_explain(typer.run, sft)
