"""Metrics per dataset, and the comparison of runs."""
