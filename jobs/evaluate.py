"""Evaluate under Ray: ray job submit --working-dir . -- python jobs/evaluate.py
RUN|CONFIG|MODEL[+ADAPTER] …

The same as `rarl eval`.
"""

import typer

from rarl.cli import evaluate, run_and_explain

if __name__ == "__main__":
    run_and_explain(typer.run, evaluate)
