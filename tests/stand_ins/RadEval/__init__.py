"""Not RadEval: a stand-in of a few lines with the interface that RARL's adapter uses, for tests
where the real package cannot be installed."""

# The name is the package's.
# ruff: noqa: N999
