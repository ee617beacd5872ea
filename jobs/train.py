"""Train under Ray: ray job submit --working-dir . -- python jobs/train.py configs/demo.yaml
[key=value …]

The same as `rarl train`; the run directory must be on storage that every node sees.
"""

import signal

from rarl.system.processes import end_at_once

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_at_once)  # what follows takes a second to import
    import typer

    from rarl.cli import run_and_explain, train

    run_and_explain(typer.run, train)
