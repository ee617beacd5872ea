"""Two Ray nodes on this machine, with an address and a temporary folder each, as two machines have.

    unshare -rnmpf --mount-proc python -m tests.faults.nodes FOLDER RUN_DIR COMMAND …

runs the command on the first node and, as soon as three steps are made, kills all that runs on the
second. What ran there is in FOLDER/second-node.json. It ends with the command's exit status, and
everything in it ends with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from rarl.training.log import read_metrics

RAY = str(Path(sys.executable).parent / "ray")
HEAD, SECOND = "10.9.0.1", "10.9.0.2"
COUNT_NODES = (
    f"import ray; ray.init('{HEAD}:6379'); print(sum(node['Alive'] for node in ray.nodes()))"
)
PATIENCE = 120  # seconds for a node to come up
# a lost node is noticed after 2.5 s, by default after 15
QUICK = {"RAY_health_check_period_ms": "500"}


def lay_cable() -> None:
    """A network of two namespaces, `node1` and `node2`."""
    shell("mount -t tmpfs tmpfs /run")
    for name in ("node1", "node2"):
        shell(f"ip netns add {name}", f"ip -n {name} link set lo up")
    shell("ip link add cable netns node1 type veth peer name cable netns node2")
    for name, address in (("node1", HEAD), ("node2", SECOND)):
        shell(f"ip -n {name} addr add {address}/24 dev cable", f"ip -n {name} link set cable up")


def shell(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def inside(node: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{node}", *command]


def start_nodes(folder: Path) -> None:
    Path("/tmp/ray").mkdir(exist_ok=True)
    shell("mount -t tmpfs tmpfs /tmp/ray")
    os.environ |= QUICK
    start = [RAY, "start", "--block", "--num-cpus=2", "--disable-usage-stats"]
    own_folder = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /tmp/ray && exec "$@"', "sh"]
    with (folder / "nodes.log").open("w") as log:
        head = [
            *start,
            "--head",
            "--port=6379",
            f"--node-ip-address={HEAD}",
            "--include-dashboard=false",
        ]
        subprocess.Popen(inside("node1", *head), stdout=log, stderr=log)
        wait_for_nodes(1)
        second = [*own_folder, *start, f"--address={HEAD}:6379", f"--node-ip-address={SECOND}"]
        subprocess.Popen(inside("node2", *second), stdout=log, stderr=log)
        wait_for_nodes(2)


def wait_for_nodes(count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        asked = subprocess.run(
            inside("node1", sys.executable, "-c", COUNT_NODES), capture_output=True, text=True
        )
        if asked.returncode == 0 and int(asked.stdout.split()[-1]) == count:
            return
        time.sleep(0.5)
    sys.exit(f"not {count} nodes after {PATIENCE} s")


def processes_of(node: str) -> list[psutil.Process]:
    pids = subprocess.run(
        ["ip", "netns", "pids", node], capture_output=True, text=True, check=True
    ).stdout.split()
    return [psutil.Process(int(pid)) for pid in pids]


def main() -> None:
    folder, run_dir, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    lay_cable()
    start_nodes(folder)
    process = subprocess.Popen(
        inside("node1", *command), env=os.environ | {"RAY_ADDRESS": f"{HEAD}:6379"}
    )
    while len(read_metrics(run_dir / "metrics.jsonl")) < 3 and process.poll() is None:
        time.sleep(0.05)
    doomed = processes_of("node2")
    (folder / "second-node.json").write_text(
        json.dumps([" ".join(victim.cmdline()) for victim in doomed])
    )
    for victim in doomed:
        victim.send_signal(signal.SIGKILL)
    sys.exit(process.wait())


if __name__ == "__main__":
    main()
