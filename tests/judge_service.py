"""The judge's Ray Serve applications, started from the configuration file that users run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from ray import serve

from rarl.judge.app import build
from rarl.tiny.dataset import base_model
from tests.judge_faults import free_port
from tests.runs import REPOSITORY


@dataclass(frozen=True)
class JudgeService:
    """`llm_url` ends in /v1; `judge_url` is what `judge.url` wants, and `app:judge` is the same by
    handle."""

    llm_url: str
    model: str
    judge_url: str
    port: int


def start_judge_service() -> JudgeService:
    """Returns when both applications answer. Needs a Ray cluster that this process is part of."""
    from ray.serve.llm import build_openai_app  # imports vLLM, which takes seconds

    port = free_port()
    llm, judge = read_applications()
    llm["args"]["llm_configs"][0]["model_loading_config"]["model_source"] = str(base_model())
    service = JudgeService(
        f"http://127.0.0.1:{port}/llm/v1", "tiny", f"http://127.0.0.1:{port}/judge", port
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app(llm["args"]), name="llm", route_prefix="/llm")
    run_judge("judge", judge["args"] | {"url": service.llm_url})
    return service


def run_judge(name: str, args: dict[str, Any]) -> None:
    """Deploys the judge's application as `name` under /`name`."""
    serve.run(build(args), name=name, route_prefix=f"/{name}")


def read_applications() -> tuple[dict[str, Any], dict[str, Any]]:
    llm, judge = yaml.safe_load((REPOSITORY / "configs/judge/tiny.yaml").read_text())[
        "applications"
    ]
    return llm, judge
