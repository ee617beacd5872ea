"""Placement, cluster, device, signals, processes: what a run needs of the machine and of Ray."""
