"""Kills, full disks and other accidents, and that nothing is lost by them."""
