"""Models, seeds and data sets as one table: python jobs/compare.py configs/compare/ablations.yaml
[key=value …]

The same as `rarl compare`.
"""

import typer

from rarl.cli import compare, run_and_explain

if __name__ == "__main__":
    run_and_explain(typer.run, compare)
