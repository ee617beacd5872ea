"""What each command of `rarl` does: assemble, call, print."""
