"""A judge's application behind a proxy that spoils answers: how its parts are killed, and that no
candidate was lost or asked twice."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from rarl.config import JudgeConfig
from rarl.judge.cache import VerdictCache, verdict_key
from rarl.judge.candidate import Candidate
from rarl.judge.client import open_judge
from rarl.judge.judge import JudgeCounts
from rarl.judge.rubric import CHECKLIST
from rarl.schema import Verdict
from tests.judge_faults import FaultyServer
from tests.runs import command_of

STATUSES = ("scored", "unparsable", "unreachable")


@dataclass(frozen=True)
class Faulty:
    """A judge application whose model is reached through a proxy that spoils a third of the
    answers."""

    url: str
    proxy: FaultyServer
    proxy_url: str
    cache: Path


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
