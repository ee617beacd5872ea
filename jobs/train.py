"""Train under Ray: ray job submit --working-dir . -- python jobs/train.py configs/demo.yaml
[key=value …]

The same as `rarl train`; the run directory must be on storage that every node sees.
"""

import typer

from rarl.cli import run_and_explain, train

if __name__ == "__main__":
    run_and_explain(typer.run, train)
