"""The training loop, run by Ray Train, and the directory that it writes."""
