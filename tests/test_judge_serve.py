"""The judge as it runs in earnest: Ray Serve, vLLM with constrained decoding, HTTP and handles,
faults and deaths."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray import serve

from rarl.collect import Collector
from rarl.config import JudgeConfig
from rarl.data.stream import PreparerSettings
from rarl.errors import UserError
from rarl.evaluation.measurements import Exam, Measurement, complete, look_up
from rarl.evaluation.metrics import GRADE_SETTINGS, GRADES
from rarl.evaluation.results import summarise
from rarl.judge.app import build
from rarl.judge.cache import VerdictCache, verdict_key
from rarl.judge.candidate import MAX_BATCH, MAX_CHARACTERS, Candidate, candidate_json
from rarl.judge.card_measure import measure_judge, verdicts_needed
from rarl.judge.card_set import QUESTIONS
from rarl.judge.client import open_judge
from rarl.judge.judge import JudgeCounts
from rarl.judge.rubric import CHECKLIST
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplingSettings
from rarl.schema import Verdict
from rarl.training.log import read_metrics
from tests.judge_faults import FaultyServer, candidates, forward_to, free_port, serving
from tests.judge_service import (
    JudgeService,
    read_applications,
    run_judge,
    wait_for_tiny_model,
)
from tests.runs import REPOSITORY, command_of, train_here

pytestmark = pytest.mark.slow
STATUSES = ("scored", "unparsable", "unreachable")


def config(**keys: Any) -> JudgeConfig:
    return JudgeConfig(**({"backend": "serve"} | keys))


@pytest.mark.parametrize("by", ["url", "handle"])
def test_the_application_by_url_and_by_handle(judge_service: JudgeService, by: str) -> None:
    url = judge_service.judge_url if by == "url" else "app:judge"
    with open_judge(config(url=url), None) as judge:
        verdicts = judge.score(candidates(12, by))
        assert {verdict.status for verdict in verdicts} == {"scored"}
        assert judge.counts().attempts == 2  # 8 and 4 to a request
    direct = config(backend="openai", url=judge_service.llm_url, model=judge_service.model)
    with open_judge(direct, None) as judge:
        assert judge.score(candidates(12, by)) == verdicts


def test_a_judge_within_a_ray_worker(judge_service: JudgeService) -> None:
    """As in the train worker: a process of Ray's, with its own threads."""

    def ask(asking: JudgeConfig) -> list[Verdict]:
        with open_judge(asking, None) as judge:
            return judge.score(candidates(2, "worker"))

    remote = ray.remote(num_cpus=0.1)(ask)
    by_url, by_handle = ray.get(
        [remote.remote(config(url=url)) for url in (judge_service.judge_url, "app:judge")]
    )
    assert by_url == by_handle
    assert {verdict.status for verdict in by_url} == {"scored"}


def test_the_application_checks_what_it_is_sent(judge_service: JudgeService) -> None:
    good = candidate_json(candidates(1)[0])

    def post(body: Any) -> httpx.Response:
        return httpx.post(f"{judge_service.judge_url}/score", json=body, timeout=120)

    answered = post({"candidates": [good, good]})
    assert answered.status_code == 200
    assert [verdict["status"] for verdict in answered.json()["verdicts"]] == ["scored"] * 2
    assert post({"candidates": []}).json() == {"verdicts": []}
    bad: Any
    for bad in (
        {},
        [],
        {"candidates": {}},
        {"candidates": [{}]},
        {"candidates": [good | {"reply": 3}]},
        {"candidates": [good | {"grade": 3}]},
        {"candidates": [good], "temperature": 1},
    ):
        assert post(bad).status_code == 422, bad
    assert httpx.post(f"{judge_service.judge_url}/score", content=b"{").status_code == 422
    assert post({"candidates": [good] * (MAX_BATCH + 1)}).status_code == 413
    assert post({"candidates": [good | {"reply": "x" * (MAX_CHARACTERS + 1)}]}).status_code == 413
    health = httpx.get(f"{judge_service.judge_url}/health").json()
    assert health["model"] == "tiny" and health["scored"] > 0


def test_a_reply_too_long_for_the_application_costs_itself_alone(
    judge_service: JudgeService,
) -> None:
    asked = candidates(3, "long")
    asked[1] = replace(asked[1], reply="x" * (MAX_CHARACTERS + 1))
    with open_judge(config(url=judge_service.judge_url), None) as judge:
        assert [verdict.status for verdict in judge.score(asked)] == [
            "scored",
            "unparsable",
            "scored",
        ]


def test_a_reply_too_long_for_the_model_costs_itself_alone(judge_service: JudgeService) -> None:
    asked = candidates(3, "wordy")
    asked[1] = replace(asked[1], thinking="\u200b" * 3000)
    with open_judge(config(url=judge_service.judge_url), None) as judge:
        verdicts = judge.score(asked)
    assert [verdict.status for verdict in verdicts] == ["scored", "unparsable", "scored"]
    assert "refused by the server" in verdicts[1].reason


@pytest.fixture(scope="module")
def wrong(judge_service: JudgeService) -> Iterator[None]:
    """Two applications that cannot judge: `wrong` asks for a model that is not there, `lost` asks
    where nobody listens."""
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    settings = {
        "wrong": {"url": judge_service.llm_url, "model": "large", "retries": 0},
        "lost": {"url": nowhere, "model": "m", "retries": 1},
    }
    serve.run_many(
        [
            serve.RunTarget(
                build({"backend": "openai", "num_cpus": 0.05, **keys}), name, f"/{name}"
            )
            for name, keys in settings.items()
        ]
    )
    yield
    for name in settings:
        serve.delete(name)


@pytest.mark.parametrize("by", ["url", "handle"])
def test_a_misconfigured_application_says_so(
    judge_service: JudgeService, wrong: None, by: str
) -> None:
    url = judge_service.judge_url.replace("/judge", "/wrong") if by == "url" else "app:wrong"
    expected = (
        r"set up wrongly: the judge large at .* is not there; see judge\.url and judge\.model"
    )
    with (
        open_judge(config(url=url), None) as judge,
        pytest.raises(UserError, match=expected) as caught,
    ):
        judge.score(candidates(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by", ["url", "handle"])
def test_a_model_that_is_away(judge_service: JudgeService, wrong: None, by: str) -> None:
    url = judge_service.judge_url.replace("/judge", "/lost") if by == "url" else "app:lost"
    with open_judge(config(url=url), None) as judge:
        assert {verdict.status for verdict in judge.score(candidates(3))} == {"unreachable"}
        assert judge.counts().unreachable == 3
    # it is known to be down
    expected = r"application .*lost cannot be reached \(1 attempt failed: no connection"
    stopping = config(url=url, on_unreachable="stop")
    with open_judge(stopping, None) as judge, pytest.raises(UserError, match=expected):
        judge.score(candidates(1, "stop"))


def test_no_application_at_this_address(judge_service: JudgeService) -> None:
    url = judge_service.judge_url.replace("/judge", "/nothing")
    expected = r"application at http://.*/nothing is not there \(HTTP 404"
    with (
        open_judge(config(url=url, retries=0), None) as judge,
        pytest.raises(UserError, match=expected),
    ):
        judge.score(candidates(1))
    with open_judge(config(url="app:nothing", retries=0), None) as judge:
        assert judge.score(candidates(1))[0].status == "unreachable"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"backend": "serve", "url": "app:judge"}, "backend"),
        ({"on_unreachable": "stop"}, "on_unreachable"),
        ({"replicas": 2}, "unknown key 'replicas'"),
        ({"num_replicas": 0}, "num_replicas"),
    ],
)
def test_wrong_arguments_of_the_application(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"judge application: .*{message}"):
        build(args)


@pytest.mark.parametrize("name", ["rules", "tiny", "qwen2_5_7b"])
def test_configurations_are_valid(name: str) -> None:
    """As far as it can be told without starting them: `tiny` runs above, and the others differ in
    their values."""
    from ray.serve.llm import LLMConfig
    from ray.serve.schema import ServeDeploySchema
    from vllm.engine.arg_utils import AsyncEngineArgs

    text = (REPOSITORY / f"configs/judge/{name}.yaml").read_text()
    *models, judge = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert (judge.name, judge.route_prefix, judge.import_path) == (
        "judge",
        "/judge",
        "rarl.judge.app:build",
    )
    build(dict(judge.args))
    for model in models:
        (llm,) = [LLMConfig.model_validate(one) for one in dict(model.args)["llm_configs"]]
        known = {field.name for field in fields(AsyncEngineArgs)}
        assert set(llm.engine_kwargs) <= known
        assert llm.model_id == dict(judge.args)["model"]


# The tiny model, which has been starting meanwhile


@pytest.fixture(scope="module")
def tiny(judge_service: JudgeService) -> JudgeConfig:
    """How to ask the tiny model without the application between."""
    wait_for_tiny_model()
    return config(backend="openai", url=judge_service.tiny_url, model=judge_service.model)


def test_the_tiny_model_fills_in_the_checklist(tiny: JudgeConfig) -> None:
    """Constrained decoding makes a readable verdict of a model that cannot judge; temperature 0
    makes it repeatable."""
    with open_judge(tiny, None) as judge:
        first, again = judge.score(candidates(6)), judge.score(candidates(6))
        assert {verdict.status for verdict in first} == {"scored"}
        assert first == again
        assert judge.counts().attempts == 12


def test_what_a_real_server_refuses(tiny: JudgeConfig) -> None:
    """A reply too long for the model costs itself alone; another model is the user's mistake."""
    asked = candidates(2, "wordy")
    asked[1] = replace(asked[1], thinking="\u200b" * 3000)
    with open_judge(tiny, None) as judge:
        verdicts = judge.score(asked)
    assert [verdict.status for verdict in verdicts] == ["scored", "unparsable"]
    assert "refused by the server" in verdicts[1].reason
    expected = r"the judge large at .* is not there; see judge\.url and judge\.model"
    large = tiny.model_copy(update={"model": "large", "retries": 0})
    with open_judge(large, None) as judge, pytest.raises(UserError, match=expected):
        judge.score(candidates(1))


def test_the_configuration_file_on_a_cpu(judge_service: JudgeService, tiny: JudgeConfig) -> None:
    """configs/judge/tiny.yaml as users start it: the application in front of the tiny model gives
    the model's own verdicts."""
    run_judge("cpu", read_applications()[1]["args"] | {"url": tiny.url})
    with open_judge(config(url=judge_service.judge_url.replace("/judge", "/cpu")), None) as judge:
        verdicts = judge.score(candidates(4, "cpu"))
    serve.delete("cpu")
    assert {verdict.status for verdict in verdicts} == {"scored"}
    with open_judge(tiny, None) as judge:
        assert judge.score(candidates(4, "cpu")) == verdicts


def test_a_model_that_cannot_judge_is_unfit(tiny: JudgeConfig) -> None:
    """Its card: verdicts that can be read, and mean nothing."""
    with open_judge(tiny, None) as judge:
        card = measure_judge(judge, QUESTIONS[:1], name="tiny")
    assert not card.fit
    assert {"balanced_accuracy", "explanation_auc"} <= {bar.name for bar in card.missed()}
    assert card.cost.attempts >= card.cost.verdicts == verdicts_needed(QUESTIONS[:1], 2)


# Faults and deaths


@dataclass(frozen=True)
class Faulty:
    """A judge application whose model is reached through a proxy that spoils a third of the
    answers."""

    url: str
    proxy: FaultyServer
    proxy_url: str
    cache: Path


@pytest.fixture
def faulty(judge_service: JudgeService, tmp_path: Path) -> Iterator[Faulty]:
    proxy = FaultyServer(
        forward_to(f"{judge_service.llm_url}/chat/completions"),
        # slow ones are as bad, but cost the test its time
        faults=("slow", *["500", "bad_verdict", "dropped"] * 3),
        rate=0.3,
        seed=7,
        slow_seconds=30,
    )
    cache = tmp_path / "application.sqlite"
    with serving(proxy) as address:
        proxy_url = f"{address}/v1"
        args = {
            "backend": "openai",
            "url": proxy_url,
            "model": "tiny",
            "num_cpus": 0.05,
            "cache_path": str(cache),
        }
        run_judge("faulty", args | {"timeout_seconds": 3, "retries": 5})
        url = judge_service.judge_url.replace("/judge", "/faulty")
        try:
            yield Faulty(url, proxy, proxy_url, cache)
        finally:
            serve.delete("faulty")


def kill_judge_replica() -> None:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = [name for name in names if name.startswith("SERVE_REPLICA::faulty#JudgeService")]
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


def kill_model_replica() -> None:
    """By signal, its child processes with it, as when a machine runs out of memory."""
    ours = psutil.Process().children(recursive=True)
    (replica,) = [one for one in ours if "ServeReplica:model:ChatModel" in command_of(one)]
    for one in (*replica.children(recursive=True), replica):
        os.kill(one.pid, signal.SIGKILL)


@pytest.mark.whole
def test_no_candidate_is_lost_when_replicas_die(faulty: Faulty, tmp_path: Path) -> None:
    """200 candidates through faults; midway the judge's replica is killed, and then the model's
    too."""
    asked = candidates(200, faulty.url)
    asking = config(url=faulty.url, concurrency=4, timeout_seconds=240, retries=8)
    with open_judge(asking, tmp_path / "run.sqlite") as judge:
        futures = judge.submit(asked)
        wait_for(lambda: judge.counts().done >= len(asked) // 4)
        kill_judge_replica()
        wait_for(lambda: judge.counts().done >= len(asked) // 2)
        kill_model_replica()
        verdicts = [future.result() for future in futures]
        counts = judge.counts()
    assert_all_accounted_for(asked, verdicts, counts)
    assert_asked_no_more_than_needed(faulty, asked, tmp_path / "run.sqlite", verdicts)
    assert_a_repeated_run_asks_only_for_what_is_missing(
        faulty, asking, asked, verdicts, tmp_path / "run.sqlite"
    )


def wait_for(condition: Any, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def assert_all_accounted_for(
    asked: list[Candidate], verdicts: list[Verdict], counts: JudgeCounts
) -> None:
    found: Counter[str] = Counter(verdict.status for verdict in verdicts)
    assert [found[status] for status in STATUSES] == [
        getattr(counts, status) for status in STATUSES
    ]
    assert counts.scored + counts.unparsable + counts.unreachable == len(asked) == len(verdicts)
    assert counts.cached == counts.shared == 0
    # the faults were there, and most were mended
    assert counts.scored > len(asked) / 2 and counts.unparsable > 0


def assert_asked_no_more_than_needed(
    faulty: Faulty, asked: list[Candidate], run_cache: Path, verdicts: list[Verdict]
) -> None:
    """Every verdict that counts is one that the model really gave, kept once; and no candidate was
    scored twice, except where the replica died between the model's answer and its own."""
    decided = sum(verdict.status != "unreachable" for verdict in verdicts)
    application = VerdictCache(faulty.cache)
    run = VerdictCache(run_cache)
    assert len(run) == decided
    identity = (CHECKLIST.version, "openai", faulty.proxy_url, "tiny")
    kept = [application.get(verdict_key(identity, candidate)) for candidate in asked]
    for verdict, inner in zip(verdicts, kept, strict=True):
        assert verdict.status == "unreachable" or inner == verdict
    whole = (
        one for one in faulty.proxy.log if one.status == 200 and one.fault in (None, "bad_verdict")
    )
    delivered = Counter(one.asked for one in whole)
    messages = [CHECKLIST.messages(candidate)[1]["content"] for candidate in asked]
    assert all(
        delivered[message] for message, verdict in zip(messages, kept, strict=True) if verdict
    )
    assert set(delivered) <= set(messages)
    in_flight = 16  # of the replica that was killed
    assert sum(delivered.values()) - len(application) <= in_flight
    application.close()
    run.close()


def assert_a_repeated_run_asks_only_for_what_is_missing(
    faulty: Faulty,
    asking: JudgeConfig,
    asked: list[Candidate],
    verdicts: list[Verdict],
    cache: Path,
) -> None:
    before = len(faulty.proxy.log)
    known = [
        (one, verdict)
        for one, verdict in zip(asked, verdicts, strict=True)
        if verdict.status != "unreachable"
    ]
    with open_judge(asking, cache) as judge:
        assert judge.score([candidate for candidate, _ in known]) == [
            verdict for _, verdict in known
        ]
        assert judge.counts().cached == len(known)
        assert judge.counts().attempts == 0
    assert len(faulty.proxy.log) == before


# In a run


def test_a_run_waits_for_its_judge_and_is_scored_by_it(
    judge_service: JudgeService,
    pool: SamplerPool,
    tmp_path: Path,
    dataset: Path,
    model_path: str,
    processor: Any,
) -> None:
    """Without its judge it ends, says why, and goes on when the judge is there. By handle from the
    train worker: every completion has its verdict. By URL in a measurement: every answer too."""
    overrides = [
        "rewards={accuracy: 1, judge: 0.5}",
        "train.steps=2",
        "judge.backend=serve",
        "judge.on_unreachable=stop",
    ]
    for_this_run = (pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    away = [f"judge.url=http://127.0.0.1:{free_port()}", "judge.retries=0"]
    run_dir, run = train_here(*for_this_run, *away)
    with pytest.raises(UserError, match=r"the judge application at .* cannot be reached"):
        run()
    assert read_metrics(run_dir.metrics) == []
    train_here(*for_this_run, "judge.url=app:judge", "judge.retries=6")[1]()
    steps = [(row["step"], row["judge/unreachable"]) for row in read_metrics(run_dir.metrics)]
    assert steps == [(1, 0), (2, 0)]
    rows = pq.read_table(run_dir.samples).to_pylist()
    assert len(rows) == 2 * 16
    metrics = read_metrics(run_dir.metrics)
    cache = VerdictCache(run_dir.judge_cache_of(0))
    assert 0 < len(cache) <= len({(row["example/id"], row["rollout/text"]) for row in rows})
    cache.close()
    for row in rows:
        assert row["verdict/status"] == "scored"
        parts = [row[f"verdict/{name}"] for name in ("factuality", "completeness", "relevance")]
        reward = {name: row[f"score/rewards/{name}"] for name in ("accuracy", "judge")}
        assert reward["judge"] == pytest.approx(row["verdict/correctness"] / 6 + sum(parts) / 6)
        assert row["score/total"] == pytest.approx(reward["accuracy"] + 0.5 * reward["judge"])
    for step, row in enumerate(metrics, start=1):
        own = [one["verdict/correctness"] for one in rows if one["step"] == step]
        assert row["judge/correctness"] == pytest.approx(sum(own) / len(own))
        assert row["judge/unparsable"] == row["judge/unreachable"] == 0

    preparer = PreparerSettings(str(dataset), model_path, plain_prompt())
    exam = Exam(preparer, np.arange(8), SamplingSettings(1, 0.0, 48))
    progress = look_up(Measurement("trained", "d", "plain", judge="serve"), tmp_path, exam)
    with open_judge(config(url=judge_service.judge_url), tmp_path / "evaluation.sqlite") as judge:
        collector = Collector(pool, GRADES, GRADE_SETTINGS, judge, model_path, 256)
        samples = complete(progress, collector, judge, lambda _: None)
        assert judge.counts().scored == len(samples) == 8
    summary = summarise(samples)["judge"]
    assert (summary["unparsable"], summary["unreachable"], summary["correctness"]["n"]) == (0, 0, 8)
    assert {one.verdict and one.verdict.status for one in samples} == {"scored"}


def test_a_run_without_its_judge(
    pool: SamplerPool, tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    """It goes on with the other rewards, and says how much was not judged."""
    overrides = [
        "rewards={accuracy: 1, judge: 0.5}",
        "train.steps=2",
        "judge.backend=serve",
        f"judge.url=http://127.0.0.1:{free_port()}",
        "judge.retries=0",
        "judge.on_unreachable=continue",
    ]
    run_dir, run = train_here(pool, tmp_path / "run", dataset, model_path, processor, *overrides)
    run()
    for row in read_metrics(run_dir.metrics):
        assert row["judge/unreachable"] == row["unscored/judge"] == 1.0
        assert row["reward/judge"] is None
    rows = pq.read_table(run_dir.samples).to_pylist()
    assert all(row["score/total"] == row["score/rewards/accuracy"] for row in rows)
