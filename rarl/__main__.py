"""`python -m rarl`: the same as `rarl`."""

from rarl.cli import main

if __name__ == "__main__":
    main()
