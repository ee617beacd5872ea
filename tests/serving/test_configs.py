"""The files that `serve run` takes: all of them as far as it can be told without starting them, and
the one for a CPU started."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from rarl.commands.serve import ENGINES, engine_of, serving_of
from rarl.config import dump_config, load_config
from rarl.errors import UserError
from rarl.judge.app import AppConfig
from rarl.keys import read_yaml
from rarl.schema import MOST_IMAGES
from rarl.serving.settings import ServiceConfig
from tests.runs import REPOSITORY
from tests.serving.service import Service

FILES = ("serve_config.yaml", "configs/serve/tiny.yaml", "configs/serve/qwen2vl_2b.yaml")


def applications(file: str) -> dict[str, Any]:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load((REPOSITORY / file).read_text()))
    assert schema.http_options.host == "127.0.0.1", "no file opens the service to others by itself"
    return {one.name: one for one in schema.applications}


@pytest.mark.parametrize("file", FILES)
def test_the_three_applications_can_be_built(file: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from rarl.serving.engine import engine_config

    found = applications(file)
    assert set(found) >= {"inference", "judge", "page"}
    assert {name: one.route_prefix for name, one in found.items() if one.route_prefix} == {
        "inference": "/v1",
        "page": "/",
    }, "engine and judge must have no way in but the ingress"
    for one in found.values():
        module, name = one.import_path.split(":")
        assert callable(getattr(importlib.import_module(module), name))
    config = ServiceConfig.model_validate(found["inference"].args)
    llm = engine_config(config, "/a/model")
    assert set(llm.engine_kwargs) <= {field.name for field in fields(AsyncEngineArgs)}
    assert llm.engine_kwargs["limit_mm_per_prompt"] == {"image": MOST_IMAGES, "video": 0}
    assert llm.engine_kwargs["generation_config"] == "vllm"
    AppConfig.model_validate(found["judge"].args)


def test_the_tiny_file_is_the_one_at_the_top_and_what_rarl_serve_uses() -> None:
    top, tiny = (yaml.safe_load((REPOSITORY / file).read_text()) for file in FILES[:2])
    assert top == tiny
    config = load_config(REPOSITORY / "configs/demo.yaml", ["device=cpu"])
    assert engine_of(config, "cpu") == top["applications"][0]["args"]["llm"]
    for engine in read_yaml(ENGINES).values():
        assert not {"dtype", "max_lora_rank"} & set(engine["engine_kwargs"]), (
            "they are the run's own"
        )


def test_gpu_replicas_scale_with_the_requests() -> None:
    llm = applications("configs/serve/qwen2vl_2b.yaml")["inference"].args["llm"]
    scaling = llm["deployment_config"]["autoscaling_config"]
    assert 1 <= scaling["min_replicas"] < scaling["max_replicas"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llm": {"accelerator": "A100"}}, "llm: .*accelerator"),
        ({"prompt": "nice"}, "inference application: .* unknown family 'nice'; known are plain"),
        ({"model": "/nowhere"}, "no such folder"),
    ],
)
def test_wrong_arguments_of_the_application(keys: dict[str, Any], message: str) -> None:
    from rarl.serving.app import build_inference

    with pytest.raises(UserError, match=message):
        build_inference({"model": "rarl.tiny.dataset:base_model", "name": "base", **keys})


def test_a_run_that_is_asked_in_words_of_its_own_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    (tmp_path / "prompts.yaml").write_text("ours: {form: answer, wordings: [Say it.]}\n")
    asked = [f"prompts.templates={tmp_path / 'prompts.yaml'}", "prompts.eval=ours", "device=cpu"]
    asked += ["data.max_images=3", "data.max_pixels=20000"]
    (tmp_path / "config.yaml").write_text(
        dump_config(load_config(REPOSITORY / "configs/demo.yaml", asked))
    )
    served = serving_of(tmp_path, ["limits.concurrent=3"])
    assert (served.family.wordings, served.limits.concurrent) == (["Say it."], 3)
    assert (served.limits.images, served.max_pixels) == (3, 20000), "as it was trained"
    wrong = "override 'limits.concurent=3': unknown key .* did you mean 'limits.concurrent'"
    with pytest.raises(UserError, match=wrong):
        serving_of(tmp_path, ["limits.concurent=3"])


@pytest.mark.slow
def test_serve_run_starts_the_three_applications_of_the_file(service: Service) -> None:
    """The service of these tests is serve_config.yaml, started with Ray Serve's own command."""
    from ray import serve

    found = serve.status().applications
    assert {name: one.status for name, one in found.items()} == {
        "inference": "RUNNING",
        "judge": "RUNNING",
        "page": "RUNNING",
    }
    page = httpx.get(service.url)
    assert (
        page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    )
    missing = httpx.get(f"{service.url}/none.js")
    assert missing.status_code == 404 and missing.headers["x-content-type-options"] == "nosniff"
