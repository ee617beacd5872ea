"""The judge's applications on Ray Serve: those of the configuration file that users run, and for
most tests a stand-in for the model, which starts at once and answers at once."""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from dataclasses import dataclass
from typing import Any

import yaml
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from rarl.judge.app import build
from rarl.judge.rubric import ITEMS
from rarl.tiny.dataset import base_model
from tests.judge_faults import completion, free_port
from tests.runs import REPOSITORY

MODEL = "tiny"
LONGEST = 5000  # characters of a conversation that the stand-in reads


@dataclass(frozen=True)
class JudgeService:
    """`llm_url` is the stand-in's and `tiny_url` the tiny model's; both end in /v1. `judge_url` is
    what `judge.url` wants, and `app:judge` is the same by handle."""

    llm_url: str
    tiny_url: str
    model: str
    judge_url: str
    port: int


@serve.deployment(name="ChatModel", ray_actor_options={"num_cpus": 0.05})
class ChatModel:
    """Answers chat completions as vLLM does, but without a model: what it ticks depends on what it
    is asked and on nothing else."""

    async def __call__(self, request: Request) -> Response:
        asked = await request.json()
        status, body = 200, b""
        if asked["model"] != MODEL:
            status, body = 404, error(f"The model `{asked['model']}` does not exist.")
        elif len(str(asked["messages"])) > LONGEST:
            status, body = 400, error("The prompt is longer than the maximum model length.")
        else:
            await asyncio.sleep(0.05)
            ticks = random.Random(zlib.crc32(str(asked["messages"]).encode()))
            ticked = {name: ticks.random() < 0.7 for name in ITEMS}
            body = completion(json.dumps({"reason": "so it is", **ticked}))
        return Response(body, status, media_type="application/json")


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "BadRequestError"}}).encode()


def start_judge_service() -> JudgeService:
    """Returns when the stand-in and the judge in front of it answer; the tiny model goes on
    starting, see `wait_for_tiny_model`. Needs a Ray cluster that this process is part of."""
    from ray.serve.llm import build_openai_app  # imports vLLM, which takes seconds

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    service = JudgeService(
        f"{address}/model/v1", f"{address}/llm/v1", MODEL, f"{address}/judge", port
    )
    llm, judge = read_applications()
    llm["args"]["llm_configs"][0]["model_loading_config"]["model_source"] = str(base_model())
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    model: Any = ChatModel  # a deployment, which the decorator's types do not say
    targets = [
        serve.RunTarget(model.bind(), "model", "/model"),
        serve.RunTarget(build(judge["args"] | {"url": service.llm_url}), "judge", "/judge"),
    ]
    serve.run_many(targets)
    tiny = serve.RunTarget(build_openai_app(llm["args"]), "llm", "/llm")
    serve.run_many([tiny], wait_for_applications_running=False)
    return service


def wait_for_tiny_model(seconds: float = 300) -> None:
    """Returns when the model of configs/judge/tiny.yaml answers."""
    deadline = time.monotonic() + seconds
    while (status := serve.status().applications["llm"]).status != "RUNNING":
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


def run_judge(name: str, args: dict[str, Any]) -> None:
    """Deploys the judge's application as `name` under /`name`."""
    serve.run(build(args), name=name, route_prefix=f"/{name}")


def read_applications() -> tuple[dict[str, Any], dict[str, Any]]:
    llm, judge = yaml.safe_load((REPOSITORY / "configs/judge/tiny.yaml").read_text())[
        "applications"
    ]
    return llm, judge
