"""The report: its numbers, its choice of examples, its size."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarl.errors import UserError
from rarl.evaluation.report import write_report
from rarl.evaluation.report.charts import curves
from rarl.evaluation.report.data_card import data_cards
from rarl.evaluation.report.examples import all_questions, choose, safe_json
from rarl.evaluation.report.gather import gather
from rarl.evaluation.report.plots import decimate
from rarl.evaluation.report.tables import make_tables
from rarl.evaluation.report.thumbnails import byte_limit, thumbnail
from rarl.evaluation.summary import difference, summarise
from rarl.schema import Example
from rarl.tiny.dataset import draw_examples
from tests.report_runs import HOSTILE, STEPS, draw_data, replies, spoil, write_comparison, write_run


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    return draw_data()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, data: dict[str, list[Example]]) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"), data)


def test_one_run_has_the_numbers_of_its_summary(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_run(tmp_path / "mine", data, 0.75)
    table = make_tables(gather(tmp_path / "mine"))[0]
    before, after = replies(tmp_path, "mine", "seen", "base"), replies(tmp_path, "mine", "seen")
    base, trained = table.rows
    assert (base.model, trained.model) == ("base", "trained")
    expected, change = summarise(after), difference(before, after)
    assert trained.accuracy.mean == pytest.approx(100 * expected["accuracy"])
    assert (trained.accuracy.low, trained.accuracy.high) == pytest.approx(
        [100 * v for v in expected["ci95"]]
    )
    assert trained.change and trained.reasoning_change
    assert trained.change.mean == pytest.approx(change["points"])
    assert (trained.change.low, trained.change.high) == pytest.approx(change["ci95"])
    assert trained.reasoning_change.mean == pytest.approx(change["reasoning"]["points"])
    assert base.change is None
    assert {kind: m.n for kind, m in trained.by_type.items()} == {
        kind: sum(p.answer_type == kind for p in after) for kind in ("choice", "closed")
    }


def test_a_comparison_pools_seeds_and_tells_bases_apart(comparison: Path) -> None:
    report = gather(comparison)
    table = make_tables(report)[0]
    assert [row.model for row in table.rows] == ["base (plain)", "base (reason)", "rarl", "sft"]
    rarl, sft = table.row("rarl"), table.row("sft")
    assert rarl and sft and sft.lead
    pooled = [p.correct for seed in (0, 1) for p in replies(comparison, f"rarl-{seed}", "seen")]
    other = [p.correct for seed in (0, 1) for p in replies(comparison, f"sft-{seed}", "seen")]
    assert rarl.accuracy.n == 120
    assert rarl.accuracy.mean == pytest.approx(100 * np.mean(pooled))
    assert sft.lead.mean == pytest.approx(100 * (np.mean(pooled) - np.mean(other)))
    assert rarl.lead is None
    assert any(note.startswith("rl-0: ") for note in report.notes)


def test_seeds_on_the_same_images_do_not_count_them_twice(comparison: Path, tmp_path: Path) -> None:
    """Both seeds giving the same replies must leave the interval as wide as one seed's."""
    one = {"seen": draw_examples("seen", 60, seed=3, split="test")}
    for seed in (0, 1):
        write_run(tmp_path / f"same-{seed}", one, 0.8, 0)
    write_run(tmp_path / "alone/run", one, 0.8, 0)
    twice = make_tables(gather(tmp_path))[0].row("same")
    alone = make_tables(gather(tmp_path / "alone/run"))[0].row("trained")
    assert twice and alone
    assert (twice.accuracy.n, alone.accuracy.n) == (120, 60)
    assert (twice.accuracy.low, twice.accuracy.high) == pytest.approx(
        (alone.accuracy.low, alone.accuracy.high)
    )


def test_data_sets_measured_later_are_found_and_other_ways_of_asking_are_not(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    write_run(folder, data, 0.75)
    evaluation = folder / "evaluation"
    for suffix in (
        "seen-none",
        "seen-text",
        "vqa",
        "vqa-none",
        "vqa-samples4",
        "vqa-judged-by-gpt",
    ):
        (evaluation / f"trained-{suffix}.parquet").write_bytes(
            (evaluation / "trained-seen.parquet").read_bytes()
        )
    assert gather(folder).data_sets == ["seen", "unseen", "vqa"]


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda folder: None, "no such folder"),
        (
            lambda folder: folder.mkdir(),
            "neither a run directory (there is no config.yaml in it) nor a folder",
        ),
    ],
)
def test_what_is_no_run_directory_is_an_error_that_says_so(
    tmp_path: Path, make: Any, part: str
) -> None:
    make(tmp_path / "it")
    with pytest.raises(UserError) as caught:
        write_report(tmp_path / "it")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_measurement_is_an_error(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    run_dir = write_run(tmp_path / "mine", data, 0.5)
    for path in (run_dir.path / "evaluation").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"no measurement in evaluation/ yet; finish the run"):
        write_report(run_dir.path)


@pytest.mark.parametrize("text", ["{", "[]", '{"fit": true}'])
def test_a_broken_judge_card_does_not_pass_for_a_fit_judge(
    tmp_path: Path, data: dict[str, list[Example]], text: str
) -> None:
    write_run(tmp_path / "mine", data, 0.5)
    (tmp_path / "mine/card.json").write_text(text)
    with pytest.raises(UserError, match="not a judge card"):
        write_report(tmp_path / "mine")


def test_failures_come_first_then_where_models_differ_and_data_sets_take_turns(
    comparison: Path,
) -> None:
    report = gather(comparison)
    assert report.best.name == "rarl"
    best = report.models.index(report.best)
    chosen = choose(report, all_questions(report))
    assert len(chosen) == 105

    def kind(one: Any) -> int:
        own = [reply.correct for reply in one.replies if reply]
        return 0 if not one.replies[best].correct else 1 if len(set(own)) > 1 else 2

    kinds = [kind(one) for one in chosen]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}
    assert [one.data_set for one in chosen[:4]] == ["seen", "unseen"] * 2
    assert choose(report, all_questions(report), most=10) == chosen[:10]


def test_json_cannot_end_its_script() -> None:
    text = safe_json({"reply": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"reply": HOSTILE}


def test_long_runs_draw_few_points_and_keep_their_gaps() -> None:
    places = np.arange(5000, dtype=np.float64)
    steps, values = decimate(places, np.where(places < 2500, np.nan, 1.0))
    assert len(steps) == len(values) <= 400
    assert np.isnan(values[:100]).all()
    assert values[-1] == 1.0


def test_charts_are_those_whose_metrics_were_written(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_run(tmp_path / "rl", data, 0.8)
    write_run(tmp_path / "sft", data, 0.8, 0, "method=sft")
    rl, sft = ([chart.title for chart in curves(gather(tmp_path / name))] for name in ("rl", "sft"))
    assert rl == [
        "Reward and its parts",
        "Accuracy while training",
        "Length of replies",
        "KL to the base model",
        "Sampler mismatch",
        "Seconds per phase",
    ]
    assert sft == ["Loss (supervised)", "Seconds per phase"]
    about = curves(gather(tmp_path / "rl"))[1].about
    assert (
        about
        == f"Accuracy while training over the steps. rl: from 0.41 to {0.4 + 0.01 * STEPS:.3g}."
    )


def test_data_cards_count_what_is_in_the_files(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    run_dir = write_run(tmp_path / "mine", data, 0.8)
    (run_dir.path / "skipped-seen.txt").write_text("row 3: the question is empty\n")
    (tmp_path / "data/unseen.parquet").unlink()
    train, seen, unseen = data_cards(gather(run_dir.path))
    assert (train.role, seen.role) == ("trained on", "measured")
    assert (seen.questions, seen.images, seen.measured) == (
        60,
        len({e.image_id for e in data["seen"]}),
        60,
    )
    closed = [e.answer for e in data["seen"] if e.answer_type == "closed"]
    assert {what: count for what, count, _ in seen.answers["closed"]} == {
        answer: closed.count(answer) for answer in set(closed)
    }
    assert (seen.skipped_rows, seen.skipped) == (1, ["row 3: the question is empty"])
    assert "no such Parquet file" in unseen.fault


def test_the_same_run_gives_the_same_file(tmp_path: Path, data: dict[str, list[Example]]) -> None:
    write_run(tmp_path / "mine", data, 0.8)
    first = write_report(tmp_path / "mine").read_bytes()
    assert write_report(tmp_path / "mine").read_bytes() == first


def noisy(seed: int) -> bytes:
    """1024x1024, with noise that survives shrinking: what compresses worst."""
    noise = np.random.default_rng(seed).integers(256, size=(256, 256, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.repeat(4, axis=0).repeat(4, axis=1)).save(buffer, "JPEG", quality=40)
    return buffer.getvalue()


def test_a_picture_keeps_within_its_bytes_and_256_pixels() -> None:
    for limit in (48_000, 8_000, 1_500):
        url = thumbnail(noisy(0), limit)
        assert url is not None
        encoded = base64.b64decode(url.partition(",")[2])
        assert len(encoded) <= limit
        assert max(Image.open(io.BytesIO(encoded)).size) <= 256
    assert thumbnail(b"no picture", 1000) is None
    assert byte_limit(500) * 500 * 4 / 3 < 10e6


@pytest.mark.slow
def test_500_large_noisy_photographs_stay_below_15_mb(tmp_path: Path) -> None:
    text = "A long thought <of> many & words. " * 60
    pictures = [noisy(i) for i in range(25)]
    examples = [
        Example(
            f"e{i}", pictures[i % 25], f"i{i}", f"What is it, {i}?", "noise", "open", rationale=text
        )
        for i in range(500)
    ]
    run_dir = write_run(tmp_path / "mine", {"photographs": examples}, 0.5)
    for label in ("base", "trained"):
        path = run_dir.path / "evaluation" / f"{label}-photographs.parquet"
        spoil(
            path,
            lambda p: {"reply": f"<think>{text}</think><answer>{p.answer}</answer>"},
            range(500),
        )
    path = write_report(run_dir.path)
    page = path.read_text()
    assert page.count("data:image/") == 500
    print(f"{path.stat().st_size / 1e6:.1f} MB")
    assert path.stat().st_size < 15e6
