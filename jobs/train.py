"""Train under Ray: ray job submit --working-dir . -- python jobs/train.py configs/demo.yaml
[key=value …]

The same as `rarl train`; the run directory must be on storage that every node sees.
"""

from rarl.system.processes import end_when_asked

if __name__ == "__main__":
    end_when_asked()  # what follows takes a second to import
    import typer

    from rarl.cli import run_and_explain, train

    run_and_explain(typer.run, train)
