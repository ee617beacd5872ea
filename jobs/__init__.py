"""Entry points for `ray job submit`, and the scripts that make tables."""
