"""The entry point, `rarl` and `python -m rarl`."""

import sys

from rarl.system.processes import end_when_asked

CONTINUED = ("train", "sft", "eval", "compare", "demo")  # commands that go on when given again


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in CONTINUED:
        end_when_asked()  # what follows takes a second to import
    from rarl.cli import main as run

    run()


if __name__ == "__main__":
    main()
