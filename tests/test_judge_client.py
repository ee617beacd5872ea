"""The judge's client: its cache, and what it makes of servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backends import PLAIN_IMAGE, OpenAIBackend, TryAgain, read_verdicts
from rarl.judge.cache import VerdictCache, verdict_key
from rarl.judge.candidate import Candidate, ScoreReply, candidate_json, image_uri, reply_of
from rarl.judge.client import RemoteJudge, open_judge, read_key
from rarl.judge.judge import JudgeCounts
from rarl.judge.rubric import CHECKLIST, Rubric, find_rubric, unparsable, unreachable
from rarl.schema import Verdict
from tests.judge_faults import (
    FAULTS,
    FaultyServer,
    candidates,
    checklist,
    completion,
    free_port,
    message_of,
    praise,
    serving,
)

GOOD = json.dumps(checklist("fine"))
RUBRICS = ("checklist", "steps")

Start = Callable[..., tuple[RemoteJudge, FaultyServer]]

# Cache

SCORED = Verdict("scored", 2.0, 0.5, 1.0, 0.5, "so so")


def test_the_key_is_the_content() -> None:
    (base,) = candidates(1)
    changed: list[Candidate] = [
        replace(base, question="?"),
        replace(base, options=None),
        replace(base, options=("right", "left")),
        replace(base, reference="right"),
        replace(base, rationale=None),
        replace(base, rationale=""),
        replace(base, reply=base.reply + " "),
        replace(base, thinking=None),
        replace(base, answer=None),
        replace(base, answer="\ud800"),
        replace(base, image="data:image/png;base64,AA=="),
    ]
    keys = [verdict_key(("openai", "http://a/v1", "m"), one) for one in (base, *changed)]
    keys += [
        verdict_key(who, base)
        for who in (("openai", "http://b/v1", "m"), ("openai", "http://a/v1", "n"), ("s",))
    ]
    assert len(set(keys)) == len(keys)
    assert verdict_key(("openai", "http://a/v1", "m"), replace(base)) == keys[0]


def test_the_key_depends_on_the_wording() -> None:
    asked = ("http://a/v1", "m", None, None, 1.0)
    identities = [OpenAIBackend(*asked, find_rubric(name)).identity for name in RUBRICS]
    keys = {verdict_key(one, candidates(1)[0]) for one in identities}
    assert len(keys) == len(RUBRICS) == 2
    changed = Rubric.model_validate(CHECKLIST.model_dump() | {"unseen": "Guess."})
    assert changed.version != CHECKLIST.version


def test_verdicts_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "verdicts.sqlite"
    cache = VerdictCache(path)
    verdicts = {
        "a": SCORED,
        "b": unparsable("no json"),
        "c": Verdict("scored", 3.0, None, None, 1.0, "µ 漢"),
    }
    for key, verdict in verdicts.items():
        cache.put(key, verdict)
    cache.put("d", unreachable("down"))
    cache.put("a", unparsable("a second one changes nothing"))
    cache.close()
    again = VerdictCache(path)
    assert {key: again.get(key) for key in verdicts} == verdicts
    assert again.get("d") is None and again.get("e") is None and len(again) == 3
    again.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty_pages"])
def test_a_damaged_cache_is_moved_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path)
    for index in range(80):  # several pages
        cache.put(str(index), SCORED)
    cache.close()
    content = path.read_bytes()
    spoilt = {
        "garbage": b"not a database at all " * 100,
        "truncated": content[: len(content) // 2],
        "empty_pages": content[:4096] + bytes(len(content) - 4096),
    }[damage]
    for _ in range(2):  # a second time beside the first
        path.write_bytes(spoilt)
        cache = VerdictCache(path)
        assert cache.moved_aside is not None and cache.moved_aside.read_bytes() == spoilt
        assert len(cache) == 0
        cache.put("1", SCORED)
        assert cache.get("1") == SCORED
        cache.close()
    assert len(list(tmp_path.glob("*.damaged-*"))) == 2


def test_an_unreadable_row_is_asked_again(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as other:
        other.execute("INSERT INTO verdicts VALUES ('a', '{'), ('b', '{\"stars\": 3}'), ('c', '7')")
    assert [cache.get(key) for key in "abc"] == [None] * 3
    cache.close()


def test_a_cache_that_fails_costs_only_time(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as other:
        other.execute("DROP TABLE verdicts")
    cache.put("a", SCORED)
    assert cache.get("a") is None
    cache.close()


def test_many_threads_and_two_connections(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    caches = [VerdictCache(path), VerdictCache(path)]

    def work(index: int) -> Verdict | None:
        cache = caches[index % 2]
        cache.put(str(index // 4), SCORED)
        return cache.get(str(index // 4))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(160))) == [SCORED] * 160
    assert [len(cache) for cache in caches] == [40, 40]
    for cache in caches:
        cache.close()


def test_the_caches_of_other_workers_are_read(tmp_path: Path) -> None:
    """One run's workers keep a file each, and a continued run may have another number of them."""
    names = ["judge.sqlite", "judge-1.sqlite", "judge-12.sqlite"]
    others = ["judge-card.sqlite", "judge-1.sqlite.damaged-1", "judge-1-2.sqlite", "other.sqlite"]
    for name in (*names, *others):
        written = VerdictCache(tmp_path / name)
        written.put(name, SCORED)
        written.close()
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        cache = VerdictCache(tmp_path / name)
        assert [cache.get(one) for one in names] == [SCORED] * 3
        assert [cache.get(one) for one in others] == [None] * 4
        assert len(cache) == 1
        cache.close()
    cache = VerdictCache(tmp_path / "judge-2.sqlite")
    assert [cache.get(one) for one in names] == [SCORED] * 3 and len(cache) == 0
    cache.close()
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_siblings_that_cannot_be_read_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "judge-1.sqlite").write_bytes(b"not a database at all " * 100)
    (tmp_path / "judge-2.sqlite").mkdir()
    (tmp_path / "judge-3.sqlite").touch()
    sqlite3.connect(tmp_path / "judge-4.sqlite").execute("CREATE TABLE cats (name)").close()
    good = VerdictCache(tmp_path / "judge-5.sqlite")
    good.put("a", SCORED)
    cache = VerdictCache(tmp_path / "judge.sqlite")
    assert cache.get("a") == SCORED and cache.get("b") is None
    assert cache.moved_aside is None and (tmp_path / "judge-1.sqlite").exists()
    good.put("b", SCORED)  # it is not locked, and what it is told later is seen
    assert cache.get("b") == SCORED
    good.close()
    cache.close()


def test_two_processes_beside_each_other(tmp_path: Path) -> None:
    """Each writes its own file and reads the other's meanwhile; then one reads all."""
    code = (
        "import sys; from pathlib import Path; from rarl.judge.cache import VerdictCache\n"
        "from rarl.schema import Verdict\n"
        "cache = VerdictCache(Path(sys.argv[1]))\n"
        "for n in range(40):\n"
        "    cache.put(f'{sys.argv[2]}{n}', Verdict('scored', 1.0, 1.0, 1.0, 1.0))\n"
        "    assert cache.get(f'{sys.argv[2]}{n}')\n"
        "    cache.get(f'a{n}'), cache.get(f'b{n}')\n"
    )
    paths = [tmp_path / "judge.sqlite", tmp_path / "judge-1.sqlite"]
    for path in paths:
        VerdictCache(path).close()
    commands = [
        [sys.executable, "-c", code, str(path), tag] for path, tag in zip(paths, "ab", strict=True)
    ]
    started = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    cache = VerdictCache(paths[0])
    assert len(cache) == 40 and cache.moved_aside is None
    assert all(cache.get(f"{tag}{n}") for tag in "ab" for n in range(40))
    cache.close()


def test_workers_share_the_requests_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    class Recorded(RemoteJudge):
        def __init__(self, *arguments: Any, concurrency: int, **options: Any) -> None:
            given.append(concurrency)
            super().__init__(*arguments, concurrency=concurrency, **options)

    monkeypatch.setattr("rarl.judge.client.RemoteJudge", Recorded)
    config = JudgeConfig(backend="openai", url="http://localhost:1/v1", model="m", concurrency=16)
    open_judge(config, None).close()
    for share in (1, 2, 3, 16, 17):
        open_judge(config, None, share=share).close()
    assert given == [16, 16, 8, 5, 1, 1]


def test_a_continued_run_with_more_workers_asks_nothing_twice(start: Start, tmp_path: Path) -> None:
    judge, server = start(cache=True)
    first = judge.score(candidates(6))
    backend = OpenAIBackend(judge.backend.identity[2], "m", None, None, 30)
    with RemoteJudge(backend, VerdictCache(tmp_path / "verdicts-1.sqlite")) as other:
        assert other.score(candidates(6)) == first
        assert other.counts().cached == 6 and len(server.log) == 6


def test_a_cache_that_cannot_be_opened_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = JudgeConfig(backend="openai", url="http://localhost:1/v1", model="m")
    with pytest.raises(UserError, match=r"cache=false"):
        open_judge(config, tmp_path / "file" / "verdicts.sqlite")


# What travels

CANDIDATE = TypeAdapter(Candidate)


def test_candidates_and_verdicts_travel_as_json() -> None:
    for candidate in (
        *candidates(2),
        replace(candidates(1)[0], options=None, rationale=None, thinking=None),
        replace(candidates(1)[0], image=PLAIN_IMAGE),
    ):
        assert CANDIDATE.validate_python(candidate_json(candidate)) == candidate
    elsewhere = candidate_json(replace(candidates(1)[0], image="http://127.0.0.1/private.png"))
    with pytest.raises(ValidationError, match="image"):
        CANDIDATE.validate_python(elsewhere)
    cut = candidate_json(replace(candidates(1)[0], reply="cut \ud83d"))
    assert CANDIDATE.validate_json(json.dumps(cut)).reply == "cut ?"
    verdicts = [
        SCORED,
        unparsable("x"),
        unreachable("y"),
        Verdict("scored", 2.0, None, None, 1.0, "z"),
    ]
    assert ScoreReply.model_validate_json(reply_of(verdicts)).verdicts == verdicts


@pytest.mark.parametrize(
    "changed",
    [
        {"correctness": 3.1},
        {"correctness": -1},
        {"factuality": 1.5},
        {"relevance": "high"},
        {"status": "good"},
        {"reason": None},
        {"stars": 3},
    ],
)
def test_what_is_no_verdict_is_refused(changed: dict[str, Any]) -> None:
    assert read_verdicts(reply_of([SCORED])) == [SCORED]
    with pytest.raises(TryAgain, match="holds no verdicts"):
        read_verdicts(json.dumps({"verdicts": [asdict(SCORED) | changed]}).encode())


@pytest.mark.parametrize("key", list(asdict(SCORED)))
def test_a_verdict_without_a_key_is_refused(key: str) -> None:
    """It would pass for one that has no such score."""
    rest = {name: value for name, value in asdict(SCORED).items() if name != key}
    with pytest.raises(TryAgain, match="holds no verdicts"):
        read_verdicts(json.dumps({"verdicts": [rest]}).encode())


# The client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server and a judge that asks it."""
    stack: list[Any] = []

    def begin(
        answer: Any = praise,
        *,
        timeout: float = 30,
        key: str | None = None,
        cache: bool = False,
        **options: Any,
    ) -> tuple[RemoteJudge, FaultyServer]:
        server_options = {
            name: options.pop(name)
            for name in ("faults", "rate", "seed", "slow_seconds", "most")
            if name in options
        }
        server = FaultyServer(answer, **server_options)
        address = serving(server)
        url = address.__enter__()
        stack.append(lambda: address.__exit__(None, None, None))
        backend = OpenAIBackend(f"{url}/v1", "m", key, "JUDGE_KEY" if key else None, timeout)
        kept = VerdictCache(tmp_path / "verdicts.sqlite") if cache else None
        judge = RemoteJudge(backend, kept, **{"first_wait": 0.01, **options})
        stack.append(judge.close)
        return judge, server

    yield begin
    for undo in reversed(stack):
        undo()


def test_a_request_is_deterministic_and_constrained(start: Start) -> None:
    requests: list[dict[str, Any]] = []

    async def record(body: bytes) -> tuple[int, bytes]:
        requests.append(json.loads(body))
        return await praise(body)

    judge, server = start(record, key="secret")
    assert judge.score(candidates(1)) == [Verdict("scored", 3.0, 1.0, 1.0, 1.0, "")]
    (request,) = requests
    assert (request["temperature"], request["model"], request["seed"]) == (0, "m", 0)
    assert request["max_completion_tokens"] == 512
    assert request["response_format"]["json_schema"]["strict"] is True
    assert request["response_format"]["json_schema"]["schema"] == CHECKLIST.answer_schema(
        candidates(1)[0]
    )
    assert request["messages"] == CHECKLIST.messages(candidates(1)[0])
    assert server.headers[0]["authorization"] == "Bearer secret"


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


def test_the_image_is_shown_as_openai_has_it(start: Start) -> None:
    requests: list[dict[str, Any]] = []

    async def record(body: bytes) -> tuple[int, bytes]:
        requests.append(json.loads(body))
        return await praise(body)

    judge, _ = start(record)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    seen = replace(candidates(1)[0], image=image_uri(pixels))
    assert judge.score([seen])[0].status == "scored"
    system, user = requests[0]["messages"]
    shown, asked = user["content"]
    assert "You see the image" in system["content"] and asked["text"].startswith("<data>")
    file = shown["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert (np.asarray(Image.open(BytesIO(b64decode(file)))) == pixels).all()


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


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = JudgeConfig(
        backend="openai", url="http://localhost:1/v1", model="m", api_key_env="RARL_TEST_KEY"
    )
    monkeypatch.delenv("RARL_TEST_KEY", raising=False)
    with pytest.raises(UserError, match=r"RARL_TEST_KEY is not set"):
        open_judge(config, None)
    monkeypatch.setenv("RARL_TEST_KEY", "secret")
    open_judge(config, None).close()


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of secrets ends in a newline; an HTTP client shows the header that it cannot send."""
    monkeypatch.setenv("RARL_TEST_KEY", "sk-secret\n")
    assert read_key("RARL_TEST_KEY") == "sk-secret"
    for bad in ("sk-secret\nsk-other", "sk-sécret"):
        monkeypatch.setenv("RARL_TEST_KEY", bad)
        with pytest.raises(UserError, match="RARL_TEST_KEY holds characters") as caught:
            read_key("RARL_TEST_KEY")
        assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("openai", "localhost:8000/v1"),
        ("openai", "app:judge"),
        ("openai", "http://"),
        ("serve", "ftp://host/judge"),
        ("serve", "http://host:port/judge"),
        ("serve", "judge"),
    ],
)
def test_an_impossible_address_is_the_users_error(backend: Any, url: str) -> None:
    with pytest.raises(UserError, match=r"judge\.url: expected http"):
        open_judge(JudgeConfig(backend=backend, url=url, model="m"), None)


def test_passwords_in_addresses_are_not_shown() -> None:
    backend = OpenAIBackend("http://user:secret@host:1/v1", "m", None, None, 1)
    assert "secret" not in backend.name + "".join(backend.identity)


def test_submit_returns_while_the_judge_thinks(start: Start) -> None:
    gate = threading.Event()

    async def answer(body: bytes) -> tuple[int, bytes]:
        await asyncio.to_thread(gate.wait)
        return await praise(body)

    judge, server = start(answer, concurrency=4)
    futures = judge.submit(candidates(12))
    assert not any(future.done() for future in futures)
    gate.set()
    assert [future.result().status for future in futures] == ["scored"] * 12
    assert server.most_at_once <= 4


def test_equal_candidates_in_flight_are_asked_once(start: Start) -> None:
    gate = threading.Event()

    async def answer(body: bytes) -> tuple[int, bytes]:
        await asyncio.to_thread(gate.wait)
        return await praise(body)

    judge, server = start(answer)
    futures = judge.submit(candidates(3) * 4) + judge.submit(candidates(3))
    futures[0].cancel()  # nobody else's
    gate.set()
    assert {future.result().status for future in futures[1:]} == {"scored"}
    assert len(server.log) == 3
    assert replace(judge.counts(), asked_seconds=0) == JudgeCounts(scored=15, shared=12, attempts=3)


def test_verdicts_come_back_in_order(start: Start) -> None:
    async def answer(body: bytes) -> tuple[int, bytes]:
        name = message_of(body).split("Spot ")[1].split(" ")[0]
        return 200, completion(json.dumps(checklist(name)))

    judge, _ = start(answer, concurrency=8)
    assert [verdict.reason for verdict in judge.score(candidates(60))] == [
        str(index) for index in range(60)
    ]


def test_the_cache_answers_the_second_time(start: Start) -> None:
    judge, server = start(cache=True, faults=["bad_verdict"], rate=0.5, seed=1)
    first = judge.score(candidates(20))
    assert {verdict.status for verdict in first} == {"scored", "unparsable"}
    assert judge.score(candidates(20)) == first
    assert len(server.log) == 20
    assert judge.counts().cached == 20 and judge.counts().done == 40


def test_a_slow_disk_keeps_no_answer_waiting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0.3 if "Spot 1 " in message_of(body) else 0)
        return await praise(body)

    judge, _ = start(answer, cache=True, timeout=1, retries=0)
    assert judge.cache is not None
    put = judge.cache.put

    def put_slowly(key: str, verdict: Verdict) -> None:
        time.sleep(1.5)
        put(key, verdict)

    monkeypatch.setattr(judge.cache, "put", put_slowly)
    assert {verdict.status for verdict in judge.score(candidates(2))} == {"scored"}
    assert len(judge.cache) == 2


def test_closing_gives_up_what_is_in_flight(start: Start) -> None:
    judge, _ = start(faults=["slow"], rate=1.0, slow_seconds=60, concurrency=2)
    futures = judge.submit(candidates(10))
    judge.close()
    judge.close()
    assert all(future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        judge.submit(candidates(1))


def test_a_mistake_of_ours_does_not_hang_the_run(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, _ = start()

    async def fail(_: object) -> list[Verdict]:
        raise KeyError("bug")

    monkeypatch.setattr(judge.backend, "judge", fail)
    with pytest.raises(KeyError):
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
