"""What the processes of a command let others reach, and what they were told of statistics."""

from __future__ import annotations

import psutil


def assert_private(process: psutil.Process) -> None:
    """Looks at every process of a command: what it listens to, and what it was told."""
    listening, told = [], set()
    for one in (process, *process.children(recursive=True)):
        try:
            found = [
                each.laddr.ip for each in one.net_connections("inet") if each.status == "LISTEN"
            ]
            listening += [(address, " ".join(one.cmdline())[:80]) for address in found]
            told.add(one.environ().get("RAY_USAGE_STATS_ENABLED"))
        except psutil.Error:  # it has ended meanwhile
            continue
    assert len(listening) > 8, "these are not the processes of Ray"
    reachable = [one for one in listening if one[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert not reachable
    # Some of Ray's own processes write their names over their environment.
    assert "0" in told and told <= {"0", None}
