"""The judge as it runs in earnest: Ray Serve, vLLM with constrained decoding, HTTP and handles,
faults and deaths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray import serve

from rarl.collect import Collector
from rarl.config import JudgeConfig
from rarl.data.stream import PreparerSettings
from rarl.errors import UserError
from rarl.evaluation.measurements import Exam, Measurement, complete, look_up
from rarl.evaluation.metrics import GRADE_SETTINGS, GRADES
from rarl.evaluation.results import summarise
from rarl.judge.app import build
from rarl.judge.cache import VerdictCache
from rarl.judge.candidate import MAX_BATCH, MAX_CHARACTERS, candidate_json
from rarl.judge.card_measure import measure_judge, verdicts_needed
from rarl.judge.card_set import QUESTIONS
from rarl.judge.client import open_judge
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplingSettings
from rarl.schema import Verdict
from rarl.training.log import read_metrics
from tests.judge_deaths import (
    Faulty,
    assert_a_repeated_run_asks_only_for_what_is_missing,
    assert_all_accounted_for,
    assert_asked_no_more_than_needed,
    kill_judge_replica,
    kill_model_replica,
    wait_for,
)
from tests.judge_faults import FaultyServer, candidates, forward_to, free_port, serving
from tests.judge_service import (
    JudgeService,
    read_applications,
    run_judge,
    wait_for_tiny_model,
)
from tests.runs import train_here

pytestmark = pytest.mark.slow


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
