"""The service as users start it: `serve run serve_config.yaml` on the Ray of the test session, and
`rarl serve RUN` in a process of its own. Each is on a free port, with a key."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import torch
import yaml
from click.testing import CliRunner
from ray import serve
from ray.serve.scripts import cli as serve_command

from rarl.config import dump_config, load_config
from rarl.grpo.policy import adapter_parameters, load_policy, save_adapter
from rarl.schema import Example
from tests.judge_faults import free_port
from tests.runs import RARL, REPOSITORY, command_of, environment

KEY = "a-key-for-the-tests-0123456789"
# a machine that is busy with other things takes minutes to import vLLM five times
START_SECONDS = 500
STRENGTH = 0.02  # of the random adapters: other log-probs than the base's, and still mostly answers


@dataclass(frozen=True)
class Service:
    """`process` has all parts of the service among its children."""

    url: str
    adapters: Path
    process: psutil.Process
    key: str = KEY

    @property
    def api(self) -> str:
        return f"{self.url}/v1"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.api, api_key=self.key, **{"max_retries": 0, "timeout": 120, **options}
        )

    def http(self, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.api, headers=headers, **{"timeout": 120, **options})

    def processes(self, word: str) -> list[psutil.Process]:
        """Those of this service whose command line holds `word`."""
        return [one for one in self.process.children(recursive=True) if word in command_of(one)]


@dataclass(frozen=True)
class Command:
    """`rarl serve`, which may still be starting."""

    service: Service
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (is_ready(self.service) and "Ctrl-C ends it" in self.log.read_text()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)


def write_run(folder: Path, model_path: str, seed: int, strength: float = STRENGTH) -> Path:
    """A finished run as far as serving looks: its configuration, and an adapter of the given
    seed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(
        REPOSITORY / "configs/demo.yaml", [f"run_dir={folder}", "prompts.eval=plain"]
    )
    (folder / "config.yaml").write_text(dump_config(config))
    write_adapter(folder / "adapter", model_path, seed, strength)
    return folder


def write_adapter(folder: Path, model_path: str, seed: int, strength: float = STRENGTH) -> None:
    """All at once, as the trainer leaves it."""
    policy = load_policy(model_path, "float32", "cpu", rank=8, alpha=16, seed=seed)
    torch.manual_seed(seed)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=strength)
    partial = folder.with_name(f".{folder.name}.{seed}")
    save_adapter(policy, partial)
    before = folder.with_name(f".{folder.name}.before")
    if folder.exists():
        folder.rename(before)
    partial.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def rarl_serve(run: Path, log: Path, *overrides: str) -> Iterator[Command]:
    """Yields at once. Ends with SIGTERM, unless the test has ended it."""
    port = free_port()
    variables = environment() | {"RARL_API_KEY": KEY, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [RARL, "serve", str(run), f"--port={port}", *overrides]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
    service = Service(f"http://127.0.0.1:{port}", run.parent, psutil.Process(process.pid))
    try:
        yield Command(service, process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


@contextmanager
def serve_run(folder: Path, **changes: Any) -> Iterator[Service]:
    """Yields when an engine answers. What is started is serve_config.yaml, but for its port and
    what `changes` says of the inference application."""
    tree = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    tree["http_options"]["port"] = port = free_port()
    arguments = tree["applications"][0]["args"]
    engine = {**arguments["llm"]["engine_kwargs"], "kv_cache_memory_bytes": 100_000_000}
    arguments |= changes | {"llm": {**arguments["llm"], "engine_kwargs": engine}}
    (folder / "key").write_text(KEY)
    arguments |= {"api_key_file": str(folder / "key")}
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(tree))
    try:
        command = ["run", "--non-blocking", str(folder / "serve_config.yaml")]
        done = CliRunner().invoke(serve_command, command)
        # A busy machine may miss Ray's limit of 60 s for its HTTP server once.
        if isinstance(done.exception, TimeoutError):
            done = CliRunner().invoke(serve_command, command)
        assert done.exit_code == 0, (done.exception, done.output)
        url, adapters = f"http://127.0.0.1:{port}", Path(changes["adapters"])
        service = Service(url, adapters, psutil.Process())
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(service):
            told = {name: one.status for name, one in serve.status().applications.items()}
            assert "DEPLOY_FAILED" not in told.values(), serve.status()
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.2)
        yield service
    finally:
        serve.shutdown()


def is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.api}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def kill_engine(service: Service) -> None:
    """By signal, its engine and worker processes with it, as when a machine runs out of memory."""
    (replica,) = service.processes("ServeReplica:inference:Engine")
    for one in (*replica.children(recursive=True), replica):
        os.kill(one.pid, signal.SIGKILL)


def image_urls(example: Example) -> list[str]:
    files = (base64.b64encode(image).decode() for image in example.images)
    return [f"data:image/png;base64,{file}" for file in files]


def image_url(example: Example) -> str:
    return image_urls(example)[0]


def messages(example: Example, text: str | None = None) -> list[Any]:
    """One turn: the images in order, and the text behind them."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls(example)]
    asked = {"type": "text", "text": text or example.question}
    return [{"role": "user", "content": [*images, asked]}]


def answer_body(example: Example, **keys: Any) -> dict[str, Any]:
    """The image of an example of one by `image`, others by `images`."""
    options = list(example.options) if example.options else ["yes", "no"]
    urls = image_urls(example)
    shown: dict[str, Any] = {"image": urls[0]} if len(urls) == 1 else {"images": urls}
    if example.image_labels:
        shown["image_labels"] = list(example.image_labels)
    return {**shown, "question": example.question, "options": options, **keys}
