"""Train under Ray: ray job submit --working-dir . -- python jobs/train.py configs/demo.yaml
[key=value …]

The same as `rarl train`; the run directory must be on storage that every node sees.
"""

import sys

from rarl.cli import run_and_explain, train_config
from rarl.config import load_config


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit("usage: python jobs/train.py CONFIG [key=value …]")
    train_config(load_config(arguments[0], arguments[1:]))


if __name__ == "__main__":
    run_and_explain(main, sys.argv[1:])
