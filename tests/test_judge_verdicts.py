"""Verdicts where they are kept and as they travel: the judge's cache, beside other processes and
damaged, and JSON."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backends import PLAIN_IMAGE, OpenAIBackend, TryAgain, read_verdicts
from rarl.judge.cache import VerdictCache, verdict_key
from rarl.judge.candidate import Candidate, ScoreReply, candidate_json, reply_of
from rarl.judge.client import open_judge
from rarl.judge.rubric import CHECKLIST, Rubric, find_rubric, unparsable, unreachable
from rarl.schema import Verdict
from tests.judge_faults import candidates

RUBRICS = ("checklist", "steps")

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
