"""64 clients for two minutes: RARL's service beside plain `vllm serve`, the same tiny model,
adapters and questions.

    python bench/serving.py                    # about ten minutes on two quiet cores
    python bench/serving.py --seconds 10       # to see that it runs

Both servers get the same engine arguments, one after the other. RARL's then has its engine killed
under the same load, and more clients than it takes. Every reply is compared with what the same
server said when it was asked alone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from serving_load import Outcome, Task, run_clients, with_expected

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
KEY = "bench-key-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
START_SECONDS = 600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_adapters(folder: Path, model: str) -> None:
    """`first` and `second`: random, small enough that the replies stay replies."""
    import torch

    from rarl.grpo.policy import adapter_parameters, load_policy, save_adapter

    for seed, name in enumerate(("first", "second"), start=1):
        policy = load_policy(model, "float32", "cpu", rank=8, alpha=16, seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter_parameters(policy):
            torch.nn.init.normal_(parameter, std=0.02)
        save_adapter(policy, folder / name)


def bodies(count: int) -> list[dict[str, Any]]:
    from rarl.tiny.dataset import draw_examples

    made = []
    for number, example in enumerate(draw_examples("seen", count, seed=7, split="bench")):
        url = "data:image/png;base64," + base64.b64encode(example.images[0]).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": example.question},
        ]
        messages = [{"role": "user", "content": content}]
        model = ("tiny", "first", "second")[number % 3]
        made.append({"model": model, "messages": messages, "temperature": 0, "max_tokens": 32})
    return made


@contextmanager
def running(command: list[str], ready: str, log: Path) -> Iterator[int]:
    """The process's id, from when `ready` answers 200 until it is ended, its children with it."""
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    variables |= {
        "RARL_API_KEY": KEY,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    variables |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdout=output, stderr=output
        )
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{command[0]} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield process.pid
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        for one in children:
            if one.is_running():
                one.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, headers=HEADERS, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def plain_command(model: str, adapters: Path, port: int, engine: dict[str, Any]) -> list[str]:
    """What `vllm serve` starts, with the engine arguments of serve_config.yaml. The command itself
    looks for a package of the name vllm, which the CPU build does not have."""
    limits = '{"image": 1, "video": 0}'
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--api-key",
        KEY,
    ]
    command += [
        "--served-model-name",
        "tiny",
        "--generation-config",
        "vllm",
        "--limit-mm-per-prompt",
        limits,
    ]
    command += [
        "--enable-lora",
        "--lora-modules",
        *(f"{name}={adapters / name}" for name in ("first", "second")),
    ]
    for key, value in engine.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            command.append(flag)
        elif not isinstance(value, dict):
            command += [flag, str(value)]
    return command


def own_command(folder: Path, adapters: Path, port: int) -> list[str]:
    """`serve run` with serve_config.yaml, its port and adapters changed."""
    tree = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    tree["http_options"]["port"] = port
    tree["applications"][0]["args"]["adapters"] = str(adapters)
    tree["applications"][0]["args"]["limits"]["request_seconds"] = 600
    (folder / "serve.yaml").write_text(yaml.safe_dump(tree))
    return [str(BIN / "serve"), "run", "--address", "local", str(folder / "serve.yaml")]


def load(name: str, url: str, tasks: list[Task], clients: int, seconds: float) -> Outcome:
    outcome = asyncio.run(run_clients(url, HEADERS, tasks, clients, seconds))
    statuses = ", ".join(
        f"{count} × {status}" for status, count in sorted(outcome.statuses.items())
    )
    print(
        f"| {name} | {clients} | {outcome.wall:.0f} | {statuses} | {outcome.wrong} | "
        f"{outcome.lost} | "
        f"{outcome.statuses[200] / outcome.wall:.1f} | {outcome.tokens / outcome.wall:.0f} | "
        f"{outcome.percentile(0.5):.2f} | {outcome.percentile(0.95):.2f} |",
        flush=True,
    )
    return outcome


def kill_engine_of(parent: int) -> None:
    """The replica with its engine and worker, by signal."""
    for process in psutil.Process(parent).children(recursive=True):
        if "ServeReplica:inference:Engine" in " ".join(process.cmdline()):
            for one in (*process.children(recursive=True), process):
                one.kill()
            return
    sys.exit("there is no engine to kill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    from rarl.tiny.dataset import base_model

    model = str(base_model())
    args = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["applications"][0]["args"]
    print(
        "| server | clients | seconds | statuses | wrong | lost | replies/s | tokens/s "
        "| median s | 95 % s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        adapters = folder / "adapters"
        write_adapters(adapters, model)
        url = f"http://127.0.0.1:{port}/v1"
        command = plain_command(model, adapters, port, args["llm"]["engine_kwargs"])
        with running(command, f"{url}/models", folder / "vllm.log"):
            load(
                "vllm serve",
                url,
                with_expected(url, HEADERS, bodies(48)),
                options.clients,
                options.seconds,
            )
        with running(
            own_command(folder, adapters, port), f"{url}/ready", folder / "rarl.log"
        ) as parent:
            tasks = with_expected(url, HEADERS, bodies(48))
            load("RARL", url, tasks, options.clients, options.seconds)
            threading.Timer(options.seconds / 4, kill_engine_of, [parent]).start()
            load(
                "RARL, its engine killed after a quarter",
                url,
                tasks,
                options.clients,
                options.seconds,
            )
            load("RARL, more than it takes", url, tasks, 3 * options.clients, options.seconds / 4)


if __name__ == "__main__":
    main()
