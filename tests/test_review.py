"""`rarl data review` without its page: marks on disk, agreement, the data set with the marks read
back, and the door of its server."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import hypothesis.strategies as some
import pytest
from hypothesis import given
from sklearn.metrics import cohen_kappa_score

from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.judge.card_measure import cohens_kappa
from rarl.rationales.explain import RATIONALES
from rarl.rationales.marks import (
    DECISIONS,
    LONGEST_TEXT,
    WHEN,
    WHO,
    Decision,
    MarkFile,
    agreements,
    apply_marks,
    read_marks,
)
from rarl.serving.review.app import BODY_BYTES, build_review
from tests.judge_faults import free_port, serving
from tests.reviewing import HOSTILE, write_rationales
from tests.runs import RARL, assert_one_line_error, environment, rarl_here

FIRST: list[Decision] = ["accept", "reject", "edit", "accept", "accept", "reject", "edit", "accept"]
SECOND: list[Decision] = ["accept", "reject", "accept", "accept", "reject", "reject", "edit"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_rationales(tmp_path / "out")
    return tmp_path / "out"


def mark_all(out: Path, reviewer: str, decisions: list[Decision]) -> None:
    data = ParquetRows(out / RATIONALES)
    for example, decision in zip(data.read(range(len(data))), decisions, strict=False):
        text = f"{example.rationale} As {reviewer} sees it." if decision == "edit" else None
        MarkFile(out, reviewer).add(example, decision, text)


# Marks


def test_two_reviewers_agree_as_far_as_kappa_says(out: Path) -> None:
    mark_all(out, "Ann", FIRST)
    mark_all(out, "Dr. Müller", SECOND)
    (found,) = agreements(read_marks(out), ParquetRows(out / RATIONALES))
    assert (found.first, found.second, found.n) == ("Ann", "Dr. Müller", len(SECOND))
    both = FIRST[: len(SECOND)]
    assert found.kappa == pytest.approx(cohen_kappa_score(both, SECOND))
    usable = [[one != "reject" for one in own] for own in (both, SECOND)]
    assert found.usable_kappa == pytest.approx(cohen_kappa_score(*usable))
    assert found.same == pytest.approx(5 / 7) and found.usable == pytest.approx(6 / 7)
    assert "7 rationales" in found.line() and f"{found.kappa:.2f}" in found.line()


@given(
    some.lists(some.tuples(some.sampled_from(DECISIONS), some.sampled_from(DECISIONS)), min_size=1)
)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    first, second = ([one[side] for one in pairs] for side in (0, 1))
    found = cohens_kappa(first, second)
    if found is None:
        assert len({*first, *second}) == 1
    else:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-9)
        assert not math.isnan(found)


def test_the_last_mark_counts_and_all_are_kept(out: Path) -> None:
    mark_all(out, "ann", FIRST[:3])
    mark_all(out, "ann", ["reject"])
    marks = MarkFile(out, "ann").read()
    assert [one.decision for one in marks.values()] == ["reject", "reject", "edit"]
    lines = (out / "review" / "ann.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(line)["reviewer"] == "ann" for line in lines)
    assert all(json.loads(line)["at"].endswith("+00:00") for line in lines)


@pytest.mark.parametrize("cut", [1, 30, 95])
def test_a_line_that_a_crash_cut_off_costs_no_other(out: Path, cut: int) -> None:
    mark_all(out, "ann", FIRST[:3])
    path = out / "review" / "ann.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(MarkFile(out, "ann").read()) == (3 if cut == 1 else 2)
    mark_all(out, "ann", ["reject"])
    marks = MarkFile(out, "ann").read()
    assert marks["0-0"].decision == "reject" and len(marks) == (3 if cut == 1 else 2)


def test_marks_of_many_at_once_are_whole(out: Path) -> None:
    """Two pages of one reviewer, and two reviewers."""
    example = ParquetRows(out / RATIONALES).read([0])[0]
    many = [replace(example, id=f"{number}") for number in range(60)]

    def mark(reviewer: str, own: list[Any]) -> None:
        for one in own:
            MarkFile(out, reviewer).add(one, "edit", "x" * 3000)

    threads = [
        threading.Thread(target=mark, args=(name, many[start::2]))
        for name in ("ann", "ben")
        for start in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(own) for own in read_marks(out).values()] == [60, 60]


def test_marks_are_read_back(out: Path, tmp_path: Path) -> None:
    before = ParquetRows(out / RATIONALES).read(range(9))
    mark_all(out, "ann", FIRST)
    mark_all(out, "ben", SECOND)
    applied = apply_marks(out, tmp_path / "new.parquet")
    rows = ParquetRows(tmp_path / "new.parquet").read(range(9))
    found = [(one.rationale_status, one.rationale_source) for one in rows]
    teacher = "a-teacher"
    assert found == [
        ("checked", teacher),
        ("rejected", teacher),
        ("checked", "ann"),  # edited by one, accepted by the other
        ("checked", teacher),
        ("rejected", teacher),  # accepted by one, rejected by the other
        ("rejected", teacher),
        ("checked", "ben"),  # edited by both: the later edit
        ("checked", teacher),
        ("rejected", teacher),  # never had a rationale, and nobody saw it
    ]
    assert rows[2].rationale == f"{before[2].rationale} As ann sees it."
    assert rows[6].rationale == f"{before[6].rationale} As ben sees it."
    for new, old in zip(rows, before, strict=True):
        assert (new.rationale is None) == (new.rationale_status == "rejected")
        whole: dict[str, Any] = {
            "rationale": None,
            "rationale_source": None,
            "rationale_status": None,
            "extra": {},
        }
        assert replace(new, **whole) == replace(old, **whole)
    assert rows[0].extra[WHO] == "ann; ben" and rows[7].extra[WHO] == "ann"
    assert str(rows[0].extra[WHEN]).count("T") == 2 and WHO not in rows[8].extra
    assert applied.counts == {"accepted": 3, "edited": 2, "rejected": 3, "not marked": 0}
    assert applied.disagreed == 2 and applied.outdated == 0


def test_a_mark_is_no_word_about_another_rationale(out: Path, tmp_path: Path) -> None:
    mark_all(out, "ann", FIRST)
    rows = ParquetRows(out / RATIONALES).read(range(9))
    write_examples(out / RATIONALES, [replace(rows[0], rationale="Another text."), *rows[1:]])
    applied = apply_marks(out, tmp_path / "new.parquet")
    assert applied.outdated == 1 and applied.counts["not marked"] == 1
    (first,) = ParquetRows(tmp_path / "new.parquet").read([0])
    assert (first.rationale, first.rationale_status) == ("Another text.", "machine")


def test_an_edit_that_changes_nothing_accepts(out: Path) -> None:
    example = ParquetRows(out / RATIONALES).read([0])[0]
    mark = MarkFile(out, "ann").add(example, "edit", f" {example.rationale}\n")
    assert (mark.decision, mark.text) == ("accept", None)


@pytest.mark.parametrize("name", ["../ann", "a/b", "", ".hidden", "x" * 65, "a\nb", "a\x00"])
def test_names_that_are_no_file_are_refused(out: Path, name: str) -> None:
    with pytest.raises(UserError, match="--reviewer"):
        MarkFile(out, name)


def test_what_cannot_be_reviewed_is_one_line(out: Path, tmp_path: Path) -> None:
    failed = rarl_here("data", "review", tmp_path / "none", "--reviewer=ann")
    assert_one_line_error(failed, "rarl data explain DATA")
    failed = rarl_here("data", "review", out, "--apply", tmp_path / "new.parquet")
    assert_one_line_error(failed, "nothing is marked yet")
    mark_all(out, "ann", FIRST)
    for target in (out / "new.parquet", tmp_path / "new.csv"):
        failed = rarl_here("data", "review", out, "--apply", target)
        assert_one_line_error(failed, "expected a .parquet file outside of")
    mark_all(out, "ben", SECOND)
    done = rarl_here("data", "review", out, "--apply", tmp_path / "new.parquet")
    assert done.returncode == 0, done.stderr
    for part in ("ann has marked 8 of 8", "Cohen's kappa", "on 7 rationales", "2 on which"):
        assert part in done.stdout, done.stdout


# The door


@pytest.fixture
def url(out: Path) -> Iterator[str]:
    with ExitStack() as stack:
        yield stack.enter_context(serving(build_review(out, "ann")))


def shown(url: str, place: int = 0) -> str:
    return str(httpx.get(f"{url}/api/items/{place}").json()["shown"])


def body_of(url: str, **changes: Any) -> dict[str, Any]:
    return {"decision": "accept", "shown": shown(url)} | changes


def test_the_page_and_its_data_are_served_with_their_headers(url: str) -> None:
    for path in ("/", "/review.js", "/review.css", "/vendor/preact.mjs", "/api/about"):
        reply = httpx.get(url + path)
        assert reply.status_code == 200, path
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        stored = "no-store" if path.startswith("/api") else "no-cache"
        assert reply.headers["cache-control"] == stored
    item = httpx.get(f"{url}/api/items/1").json()
    assert HOSTILE in item["rationale"] and item["total"] == 8
    reply = httpx.get(f"{url}/api/items/1/image")
    assert reply.headers["content-type"] == "image/png" and reply.content[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example.org"},
        {"host": "169.254.1.1"},
        {"host": "[::1"},
        {"host": ""},
        {"host": "127.0.0.1.example.org:80"},
    ],
)
def test_another_name_is_refused(url: str, headers: dict[str, str]) -> None:
    for path in ("/", "/api/about", "/api/items/0/image"):
        assert httpx.get(url + path, headers=headers).status_code in (400, 403)
    reply = httpx.post(f"{url}/api/items/0/mark", json=body_of(url), headers=headers)
    assert reply.status_code in (400, 403)


@pytest.mark.parametrize("origin", ["http://evil.example.org", "null", "http://127.0.0.1:1"])
def test_another_page_in_the_browser_writes_nothing(url: str, out: Path, origin: str) -> None:
    mark, body = f"{url}/api/items/0/mark", body_of(url)
    assert httpx.post(mark, json=body, headers={"origin": origin}).status_code == 403
    plain = {"content-type": "text/plain"}
    assert httpx.post(mark, content=json.dumps(body), headers=plain).status_code == 415
    assert not (out / "review").exists()
    assert httpx.post(mark, json=body, headers={"origin": url}).status_code == 200


def test_nothing_outside_of_the_pages_folder_is_served(url: str, out: Path) -> None:
    tries = (
        *("/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/vendor/../../app.py", "//etc/passwd"),
        *(
            "/vendor/%2e%2e/%2e%2e/guard.py",
            "/..\\app.py",
            "/static/../../marks.py",
            "/vendor//etc/passwd",
        ),
    )
    host, port = url.removeprefix("http://").split(":")
    for path in tries:
        # As it is: clients would tidy it up.
        import socket

        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            reply = b"".join(iter(lambda: raw.recv(65536), b""))
        assert b" 404 " in reply.split(b"\r\n")[0], (path, reply[:80])
        assert b"import" not in reply and b"root:" not in reply


@pytest.mark.parametrize(
    "change, status",
    [
        ({"decision": "burn"}, 400),
        ({"decision": "edit"}, 400),
        ({"decision": "edit", "text": " \n"}, 400),
        ({"decision": "edit", "text": "x" * (LONGEST_TEXT + 1)}, 400),
        ({"decision": "edit", "text": ["a"]}, 400),
        ({"shown": "0123456789abcdef"}, 409),
        ({"shown": None}, 400),
        ({"reviewer": "somebody else"}, 400),
        ({"text": "x" * BODY_BYTES}, 413),
    ],
)
def test_marks_that_are_none_are_refused(
    url: str, out: Path, change: dict[str, Any], status: int
) -> None:
    reply = httpx.post(f"{url}/api/items/0/mark", json=body_of(url, **change))
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]
    assert not (out / "review").exists()


def test_other_routes_methods_and_bodies_are_refused(url: str) -> None:
    mark = f"{url}/api/items/0/mark"
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 5000):
        reply = httpx.post(mark, content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 400, content
    for place in (8, 99999999999999999999):
        assert httpx.get(f"{url}/api/items/{place}").status_code == 404
    assert httpx.get(f"{url}/api/items/-1").status_code == 404
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert httpx.request(method, mark).status_code == 405
    assert httpx.get(mark).status_code in (404, 405)


def test_a_mark_is_on_disk_when_it_is_answered_and_the_next_place_is_told(
    url: str, out: Path
) -> None:
    said = httpx.post(f"{url}/api/items/0/mark", json=body_of(url)).json()
    assert said == {"total": 8, "marked": 1, "open": 1}
    assert MarkFile(out, "ann").read()["0-0"].decision == "accept"
    edit = {"decision": "edit", "shown": shown(url, 7), "text": "Better so."}
    said = httpx.post(f"{url}/api/items/7/mark", json=edit).json()
    assert said == {"total": 8, "marked": 2, "open": 1}
    assert httpx.get(f"{url}/api/items/7").json()["mark"]["text"] == "Better so."


@pytest.mark.slow
def test_the_command_serves_this_machine_alone_until_it_is_stopped(out: Path) -> None:
    port = free_port()
    command = [RARL, "data", "review", str(out), f"--port={port}", "--reviewer=ann"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        while "page for ann" not in told:
            told = process.stdout.readline()
            assert process.poll() is None, told
        url = f"http://127.0.0.1:{port}"
        assert url in told
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport) as client:
            assert client.get(f"{url}/api/about").json()["reviewer"] == "ann"
        listening = [one for one in psutil_connections(process.pid) if one.status == "LISTEN"]
        assert {one.laddr.ip for one in listening} == {"127.0.0.1"}
        failed = rarl_here("data", "review", out, f"--port={port}", "--reviewer=ben")
        assert_one_line_error(failed, "choose another with --port")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)


def psutil_connections(pid: int) -> Any:
    import psutil

    return psutil.Process(pid).net_connections()
