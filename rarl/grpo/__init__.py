"""Rewards → advantages → loss → gradient: the policy model and its update."""
