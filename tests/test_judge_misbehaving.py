"""What the judge's client makes of servers that misbehave, refuse, or are not there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backends import PLAIN_IMAGE, TryAgain
from rarl.judge.cache import verdict_key
from rarl.judge.candidate import Candidate
from rarl.judge.client import open_judge
from rarl.judge.judge import JudgeCounts
from rarl.judge.rubric import CHECKLIST
from rarl.schema import Verdict
from tests.judge_asking import Start, asking
from tests.judge_faults import FAULTS, candidates, checklist, completion, free_port, praise

GOOD = json.dumps(checklist("fine"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with asking(tmp_path) as begin:
        yield begin


@pytest.mark.parametrize(
    "body",
    [
        completion("I cannot help with that."),
        completion(None, refusal="I cannot help with that."),
        completion(None),
        completion(""),
        completion(GOOD, finish_reason="length"),
        completion(GOOD, finish_reason="content_filter"),
        completion(GOOD + GOOD),
    ],
    ids=range(7),
)
def test_a_refusal_or_no_verdict_is_zero_and_counted(start: Start, body: bytes) -> None:
    async def answer(_: bytes) -> tuple[int, bytes]:
        return 200, body

    judge, server = start(answer)
    (verdict,) = judge.score(candidates(1))
    assert (verdict.status, verdict.correctness, verdict.explanation) == ("unparsable", 0.0, 0.0)
    assert replace(judge.counts(), asked_seconds=0) == JudgeCounts(unparsable=1, attempts=1)
    assert len(server.log) == 1  # it would say the same again


@pytest.mark.parametrize("fault", ["500", "429", "garbage", "hollow", "dropped", "slow"])
def test_one_fault_is_mended_by_trying_again(start: Start, fault: str) -> None:
    judge, _ = start(faults=[fault], rate=1.0, most=1, slow_seconds=60, timeout=1.5, retries=1)
    assert judge.score(candidates(1))[0].status == "scored"
    assert judge.counts().attempts == 2


@pytest.mark.parametrize("fault", ["500", "429", "garbage", "hollow", "dropped", "slow"])
def test_unreachable_is_none_and_counted(start: Start, fault: str) -> None:
    judge, server = start(
        faults=[fault],
        rate=1.0,
        slow_seconds=60,
        timeout=1 if fault == "slow" else 30,
        retries=2,
        cache=True,
    )
    (verdict,) = judge.score(candidates(1))
    assert (verdict.status, verdict.correctness, verdict.explanation) == ("unreachable", None, None)
    assert verdict.reason
    assert replace(judge.counts(), asked_seconds=0) == JudgeCounts(unreachable=1, attempts=3)
    server.rate = 0.0
    assert judge.score(candidates(1))[0].status == "scored"  # nothing of it was kept


def test_nobody_listens(tmp_path: Path) -> None:
    config = JudgeConfig(
        backend="openai", url=f"http://127.0.0.1:{free_port()}/v1", model="m", retries=0
    )
    with open_judge(config, tmp_path / "verdicts.sqlite") as judge:
        assert {verdict.status for verdict in judge.score(candidates(20))} == {"unreachable"}
        assert judge.counts().unreachable == 20
    strict = config.model_copy(update={"on_unreachable": "stop", "retries": 1})
    cannot = r"m at http://127\.0\.0\.1:\d+/v1 cannot be reached \(2 attempts failed: no connection"
    with open_judge(strict, None) as judge, pytest.raises(UserError, match=cannot):
        judge.score(candidates(1))


def test_a_dead_judge_costs_its_retries_once(start: Start) -> None:
    judge, server = start(faults=["500"], rate=1.0, retries=3, concurrency=2)
    assert {verdict.status for verdict in judge.score(candidates(50))} == {"unreachable"}
    assert len(server.log) <= 2 * 4 + 2  # two in flight with all their attempts, then single ones
    before = len(server.log)
    judge.score(candidates(50, "again"))
    assert len(server.log) - before <= 2
    server.rate = 0.0
    assert {verdict.status for verdict in judge.score(candidates(50, "later"))} == {"scored"}
    assert judge.counts().done == 150


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("key", [None, "sk-verysecret"])
def test_a_wrong_key_is_named_by_its_variable_and_never_shown(
    start: Start, status: int, key: str | None
) -> None:
    async def answer(_: bytes) -> tuple[int, bytes]:
        return status, json.dumps(
            {"error": {"message": f"Incorrect API key provided: {key}"}}
        ).encode()

    judge, server = start(answer, key=key)
    with pytest.raises(
        UserError, match=rf"m at http://.*/v1.*api_key_env; HTTP {status}"
    ) as caught:
        judge.score(candidates(1))
    assert "sk-" not in str(caught.value) and "\n" not in str(caught.value)
    assert ("$JUDGE_KEY" in str(caught.value)) == (key is not None)
    assert len(server.log) == 1


def test_a_wrong_model_is_the_users_error(start: Start) -> None:
    async def answer(_: bytes) -> tuple[int, bytes]:
        return 404, b'{"error": {"message": "no model m here"}}'

    judge, _ = start(answer, retries=1)
    with pytest.raises(UserError, match=r"judge\.url and judge\.model .*no model m here"):
        judge.score(candidates(1))


def test_a_server_that_is_deployed_again_is_waited_for(start: Start) -> None:
    """404 after a success is not the user's mistake."""
    statuses = iter([200, 404, 200])

    async def answer(body: bytes) -> tuple[int, bytes]:
        status = next(statuses)
        return (200, completion(GOOD)) if status == 200 else (status, b"{}")

    judge, _ = start(answer, retries=1)
    assert judge.score(candidates(1))[0].status == "scored"
    assert judge.score(candidates(1, "b"))[0].status == "scored"


def test_a_server_that_cannot_see_is_the_users_error(start: Start) -> None:
    """It refuses what has an image; without one it answers."""

    async def blind(body: bytes) -> tuple[int, bytes]:
        if b"image_url" in body:
            return 400, json.dumps({"error": {"message": "m is not a multimodal model"}}).encode()
        return await praise(body)

    judge, _ = start(blind)
    (one,) = candidates(1)
    assert judge.score([one])[0].status == "scored"
    expected = r"judge.image=true, but the judge m at .* cannot see .*not a multimodal.*image=false"
    with pytest.raises(UserError, match=expected):
        judge.score([replace(one, image=PLAIN_IMAGE)])


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_candidate_that_is_refused_costs_itself_alone(start: Start, status: int) -> None:
    async def answer(body: bytes) -> tuple[int, bytes]:
        too_long = b"Spot 3 " in body
        return (status, b'{"error": {"message": "too long"}}') if too_long else await praise(body)

    judge, _ = start(answer, concurrency=1)
    verdicts = judge.score(candidates(6))
    assert [verdict.status for verdict in verdicts] == ["scored"] * 3 + ["unparsable"] + [
        "scored"
    ] * 2
    assert "too long" in verdicts[3].reason


def test_a_server_that_refuses_everything_is_the_users_error(start: Start) -> None:
    async def answer(_: bytes) -> tuple[int, bytes]:
        return 400, b'{"error": {"message": "response_format is not supported"}}'

    judge, _ = start(answer)
    with pytest.raises(UserError, match=r"refuses every request: response_format is not supported"):
        judge.score(candidates(1))


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_scored_twice_under_faults(
    start: Start, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Several threads, every kind of fault, repeats: each candidate ends in exactly one count."""
    judge, server = start(
        faults=[*FAULTS, *FAULTS[1:]],  # slow ones are as bad, but cost the test its time
        rate=0.5,
        seed=seed,
        slow_seconds=60,
        timeout=0.5,
        retries=2,
        concurrency=8,
        cache=True,
    )
    ask, late = judge.backend.judge, set()

    async def noting_time_outs(given: Sequence[Candidate]) -> list[Verdict]:
        try:
            return await ask(given)
        except TryAgain as error:
            if "no answer within" in str(error):
                late.add(CHECKLIST.messages(given[0])[1]["content"])
            raise

    monkeypatch.setattr(judge.backend, "judge", noting_time_outs)
    asked = candidates(60)
    with ThreadPoolExecutor(4) as pool:
        rounds = list(
            pool.map(
                lambda part: judge.submit(part), [asked[:40], asked[20:], asked[::2], asked[1::2]]
            )
        )
    futures: list[Future[Verdict]] = [future for part in rounds for future in part]
    verdicts = [future.result() for future in futures]
    counts = judge.counts()
    for status in ("scored", "unparsable", "unreachable"):
        assert getattr(counts, status) == sum(verdict.status == status for verdict in verdicts)
    assert counts.done == len(futures) == 140
    assert judge.cache is not None
    kept = {
        key: judge.cache.get(key)
        for key in (verdict_key(judge.backend.identity, one) for one in asked)
    }
    assert len(judge.cache) == sum(verdict is not None for verdict in kept.values())
    # A verdict that arrived whole, and not too late, was the last time that this candidate was
    # asked for.
    sound = [
        exchange.asked
        for exchange in server.log
        if exchange.status == 200 and exchange.fault is None
    ]
    assert {one for one, times in Counter(sound).items() if times > 1} <= late
    assert asdict(counts)["unreachable"] > 0 or counts.attempts > 60
