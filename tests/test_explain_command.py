"""`rarl data explain` as a command: what it writes, what it asks again after a kill, what leaves
the machine, and what cannot be asked."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rarl.commands.explain import explain
from rarl.data.parquet import ParquetRows, write_examples
from rarl.display import Display
from rarl.errors import UserError
from rarl.rationales.explain import LOST_AFTER
from rarl.rationales.teacher import LONGEST_SIDE, shrunk_uri
from tests.faulty_teacher import Bench, FaultyTeacher, by_seed
from tests.judge_faults import FaultyServer, free_port, serving
from tests.runs import RARL, assert_one_line_error, environment, rarl_here


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def test_the_data_set_has_the_rationales_and_a_start_that_was_killed_asks_nothing_twice(
    bench: Bench,
) -> None:
    """By SIGKILL, twice, while requests are in flight. What comes out is what an
    uninterrupted start makes."""
    kinds = by_seed(["fitting", "wrong", "foreign", "refusal"], seed=3)
    whole = FaultyTeacher(kinds)
    bench.start(whole)
    explain(bench.request(out=bench.folder / "whole"), Display())
    teacher = FaultyTeacher(kinds)
    gate = Gate(teacher)
    bench.start(gate)
    out = bench.folder / "out"
    options = [f"--teacher={bench.url}", "--model=m", "-n", "3", "--concurrency=4"]
    command = [RARL, "data", "explain", str(bench.data.path), str(out), *options]
    for stop in (20, 100, None):
        gate.stop = stop
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as process:
            if stop is None:
                output, _ = process.communicate(timeout=120)
                assert process.returncode == 0
                break
            gate.wait_until_shut()
            time.sleep(0.5)  # what was answered arrives and is kept
            process.send_signal(signal.SIGKILL)
        gate.open()
    counts = Counter(asked for asked, _ in teacher.answered)
    assert set(counts.values()) == {1}
    assert counts.keys() == {asked for asked, _ in whole.answered}
    made, wanted = (
        ParquetRows(folder / "rationales.parquet") for folder in (out, bench.folder / "whole")
    )
    rows = range(len(bench.data))
    assert made.read(rows) == wanted.read(rows)
    printed = output.decode()
    figures = json.loads((out / "explain.json").read_text())
    assert f"{len(teacher.answered)} replies" in printed and "tokens of prompts" in printed
    for example, before in zip(made.read(rows), bench.examples, strict=True):
        status = example.rationale_status
        assert status in ("machine", "hinted", "rejected") and example.rationale_source == "m"
        assert (example.rationale is None) == (status == "rejected")
        assert (
            replace(example, rationale=None, rationale_source=None, rationale_status=None) == before
        )
    lines = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    assert len(lines) == len(teacher.answered)
    by_outcome = Counter(line["outcome"] for line in lines)
    assert by_outcome == {
        name: count for name, one in figures["replies"].items() if (count := sum(one.values()))
    }


class Gate:
    """A teacher that answers no more after `stop` answers, until it is opened."""

    def __init__(self, teacher: FaultyTeacher) -> None:
        self.teacher, self.waiting = teacher, 0
        self.stop: int | None = None

    async def __call__(self, body: bytes) -> tuple[int, bytes]:
        if self.stop is not None and len(self.teacher.answered) >= self.stop:
            self.waiting += 1
            await asyncio.sleep(600)  # the client goes away before
        return await self.teacher(body)

    def wait_until_shut(self) -> None:
        deadline = time.monotonic() + 120
        while not self.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def open(self) -> None:
        self.waiting = 0


def test_rows_that_have_a_rationale_are_left_alone_and_fewer_are_among_more(bench: Bench) -> None:
    given = [
        replace(one, rationale="Written by hand.") if number % 2 else one
        for number, one in enumerate(bench.examples)
    ]
    write_examples(bench.folder / "half.parquet", given)
    teacher = FaultyTeacher(by_seed(["fitting"]))
    bench.start(teacher)
    request = bench.request(data=bench.folder / "half.parquet", most=10)
    few = explain(request, Display())
    assert few.questions["given"] == len(given) // 2
    assert few.questions["machine"] + few.questions["hinted"] + few.questions["rejected"] == 10
    assert few.questions["not asked"] == len(given) - len(given) // 2 - 10
    count = len(teacher.answered)
    more = explain(replace(request, most=20), Display())
    assert sum(more.questions.values()) == len(given)
    assert len({asked for asked, _ in teacher.answered}) == len(teacher.answered) > count
    out = ParquetRows(request.out / "rationales.parquet")
    hand = [one for one in out.read(range(len(out))) if one.rationale == "Written by hand."]
    assert len(hand) == len(given) // 2
    assert {one.rationale_status for one in hand} == {None}


def test_images_leave_this_machine_only_when_that_is_said(bench: Bench) -> None:
    bench.url = "http://127.0.0.1:1/v1"
    remote = "http://user:secret@203.0.113.9/v1"
    with pytest.raises(UserError, match="--send-images") as told:
        bench.request(teacher=remote)
    assert "secret" not in str(told.value)
    bench.request(teacher=remote, send_images=True)
    for here in ("http://127.0.0.1:8000/v1", "http://[::1]:8/v1", "http://localhost/v1", "self"):
        assert bench.request(teacher=here).is_local
    for there in (
        "http://localhost.example.org/v1",
        "http://10.0.0.7/v1",
        "https://127.0.0.1.nip.io/",
    ):
        assert not bench.request(teacher=there, send_images=True).is_local


def test_nothing_local_goes_through_a_proxy_or_a_redirection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: list[bytes] = []

    async def other(body: bytes) -> tuple[int, bytes]:
        elsewhere.append(body)
        return 200, b"{}"

    away = bench.stack.enter_context(serving(FaultyServer(other)))
    monkeypatch.setenv("HTTP_PROXY", away)
    monkeypatch.setenv("ALL_PROXY", away)
    monkeypatch.setenv("NO_PROXY", "")
    bench.start(FaultyTeacher(by_seed(["fitting"])))
    explainer, _ = bench.asking()
    explainer.ask(lambda: None)
    assert not elsewhere and explainer.ended["machine"] > 0

    async def redirecting(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"location", away.encode() + b"/v1/chat/completions")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    bench.url = bench.stack.enter_context(serving(redirecting)) + "/v1"
    (bench.folder / "teacher.sqlite").unlink()
    explainer, _ = bench.asking(retries=0)
    with pytest.raises(UserError, match="HTTP 307"):
        explainer.ask(lambda: None)
    assert not elsewhere


def test_only_pixels_are_sent_and_not_more_than_needed() -> None:
    told = PngInfo()
    told.add_text("PatientName", "Doe^Jane")
    file = io.BytesIO()
    Image.effect_noise((4000, 1000), 80).save(file, "PNG", pnginfo=told)
    planted = (b"PatientName", b"Doe^Jane")
    assert all(one in file.getvalue() for one in planted)
    sent = base64.b64decode(shrunk_uri(file.getvalue()).split(",")[1])
    # Not the short "Doe", which three bytes of compressed noise may be by chance.
    assert not any(one in sent for one in planted)
    shown = Image.open(io.BytesIO(sent))
    assert shown.info == {}, "no text of any kind"
    assert shown.size == (LONGEST_SIDE, LONGEST_SIDE // 4)


@pytest.mark.parametrize(
    "status, message",
    [(401, r"wants a key; name its variable \(--api-key-env"), (404, "see --teacher and --model")],
)
def test_mistakes_of_the_user_are_one_line(bench: Bench, status: int, message: str) -> None:
    async def no(body: bytes) -> tuple[int, bytes]:
        return status, b'{"error": {"message": "no"}}'

    bench.start(no)
    explainer, _ = bench.asking(retries=0)
    with pytest.raises(UserError, match=message):
        explainer.ask(lambda: None)


def test_a_server_that_takes_no_request_or_no_image_is_told_and_nothing_is_kept(
    bench: Bench,
) -> None:
    async def no(body: bytes) -> tuple[int, bytes]:
        return 400, b'{"error": {"message": "temperature is not supported"}}'

    async def blind(body: bytes) -> tuple[int, bytes]:
        if b"image_url" in body:
            return 400, b'{"error": {"message": "not a multimodal model"}}'
        return 200, json.dumps({"choices": [{"message": {"content": "ok"}}]}).encode()

    for answer, message in ((no, "refuses every request"), (blind, "take a model that sees")):
        bench.start(answer)
        explainer, teacher = bench.asking(retries=0)
        with pytest.raises(UserError, match=message):
            explainer.ask(lambda: None)
        assert teacher.cache is not None and len(teacher.cache) == 0


def test_what_cannot_be_asked_is_told_before_anybody_is_asked(bench: Bench, tmp_path: Path) -> None:
    bench.url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UserError, match=r"expected http://host:port/v1 or self"):
        bench.request(teacher="127.0.0.1:8000")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex; choose another OUT"):
        explain(bench.request(), Display())
    write_examples(tmp_path / "twice.parquet", [*bench.examples[:2], bench.examples[0]])
    with pytest.raises(UserError, match="the id '0-0' is there twice"):
        explain(bench.request(data=tmp_path / "twice.parquet"), Display())
    done = [replace(one, rationale="Seen.") for one in bench.examples[:3]]
    write_examples(tmp_path / "done.parquet", done)
    with pytest.raises(UserError, match="every one of 3 questions has a rationale already"):
        explain(bench.request(data=tmp_path / "done.parquet"), Display())
    options = [f"--teacher={bench.url}", "--model=m", "--api-key-env=RARL_NO_SUCH_KEY"]
    failed = rarl_here("data", "explain", bench.data.path, tmp_path / "new", *options)
    assert_one_line_error(failed, "RARL_NO_SUCH_KEY is not set")


def test_nobody_listens(bench: Bench) -> None:
    bench.url = f"http://127.0.0.1:{free_port()}/v1"
    explainer, _ = bench.asking(retries=0)
    with pytest.raises(UserError, match="cannot be reached"):
        explainer.ask(lambda: None)
    lost = [one for one in explainer.work if one.replies]
    assert len(lost) == LOST_AFTER


def test_an_image_that_cannot_be_read_is_a_row_without_a_reply(bench: Bench) -> None:
    broken = [replace(bench.examples[0], images=(b"no image",)), *bench.examples[1:3]]
    write_examples(bench.folder / "broken.parquet", broken)
    bench.data = ParquetRows(bench.folder / "broken.parquet")
    bench.start(FaultyTeacher(by_seed(["fitting"])))
    explainer, _ = bench.asking()
    explainer.ask(lambda: None)
    assert [one.checked.outcome for one in explainer.work[0].replies] == ["bad image"]
    assert explainer.work[0].status() is None and explainer.work[1].status() == "machine"
