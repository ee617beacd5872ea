"""Evaluate under Ray: ray job submit --working-dir . -- python jobs/evaluate.py RUN_OR_CONFIG [key=value …]

The same as `rarl eval`.
"""

import sys
from pathlib import Path

from rarl.cli import evaluate, run_and_explain


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit("usage: python jobs/evaluate.py RUN_OR_CONFIG [key=value …]")
    evaluate(Path(arguments[0]), arguments[1:])


if __name__ == "__main__":
    run_and_explain(main, sys.argv[1:])
