"""Adapters as files: where one came from, and several made into one."""
