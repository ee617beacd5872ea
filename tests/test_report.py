"""The report: its numbers, its choice of examples, its size."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rarl.config import load_config
from rarl.errors import UserError
from rarl.evaluation.measurements import own_measurement
from rarl.evaluation.report import Measure, numbers_of, write_report
from rarl.evaluation.report.charts import curves, decimate
from rarl.evaluation.report.examples import (
    Asked,
    all_questions,
    choose,
    entry,
    safe_json,
    thumbnail,
)
from rarl.evaluation.report.gather import data_cards, gather
from rarl.evaluation.results import difference, summarise
from rarl.samples import Sample
from rarl.schema import Example
from rarl.tiny.dataset import draw_examples
from tests.records import reply_to, rights, spoil, write_measurement
from tests.report_runs import HOSTILE, STEPS, draw_data, replies, write_comparison, write_run


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
    report = gather(tmp_path / "mine")
    found = numbers_of(report)
    before, after = replies(tmp_path, "mine", "seen", "base"), replies(tmp_path, "mine", "seen")
    assert [model.name for model in report.models] == ["base", "trained"]
    expected, change = summarise(after), difference(before, after)

    def numbers(found: Measure | None) -> list[float]:
        assert found is not None
        return [found.mean, found.low, found.high]

    def wanted(found: dict[str, Any], mean: str, times: float = 1.0) -> Any:
        return pytest.approx([times * one for one in (found[mean], *found["ci95"])])

    accuracy = found.mean("trained", "seen")
    assert numbers(accuracy) == wanted(expected, "accuracy", 100.0)
    assert numbers(found.gain("trained", "seen")) == wanted(change, "points")
    reasoning = found.gain("trained", "seen", "reasoning")
    assert numbers(reasoning) == wanted(change["reasoning"], "points")
    assert found.gain("base", "seen") is None
    assert found.kinds("seen") == ["choice", "closed"] and found.kinds("unseen") == []
    for kind in found.kinds("seen"):
        part = found.mean("trained", "seen", group=kind)
        assert part and part.n == sum(one.example.answer_type == kind for one in after)


def test_a_comparison_pools_seeds_and_tells_bases_apart(comparison: Path) -> None:
    report = gather(comparison)
    found = numbers_of(report)
    names = ["base (plain)", "base (reason)", "rarl", "sft"]
    assert [model.name for model in report.models] == names
    rarl, lead = found.mean("rarl", "seen"), found.gain("rarl", "seen", against="sft")
    assert rarl and lead
    pooled, other = (
        [right for seed in (0, 1) for right in rights(replies(comparison, f"{m}-{seed}", "seen"))]
        for m in ("rarl", "sft")
    )
    assert rarl.n == 120
    assert rarl.mean == pytest.approx(100 * np.mean(pooled))
    assert lead.mean == pytest.approx(100 * (np.mean(pooled) - np.mean(other)))
    assert found.gain("rarl", "seen", against="rarl") is None
    assert any(note.startswith("rl-0: ") for note in report.notes)


def test_seeds_on_the_same_images_do_not_count_them_twice(comparison: Path, tmp_path: Path) -> None:
    """Both seeds giving the same replies must leave the interval as wide as one seed's."""
    one = {"seen": draw_examples("seen", 60, seed=3, split="test")}
    for seed in (0, 1):
        write_run(tmp_path / f"same-{seed}", one, 0.8, 0)
    write_run(tmp_path / "alone/run", one, 0.8, 0)
    twice = numbers_of(gather(tmp_path)).mean("same", "seen")
    alone = numbers_of(gather(tmp_path / "alone/run")).mean("trained", "seen")
    assert twice and alone
    assert (twice.n, alone.n) == (120, 60)
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))


def test_data_sets_measured_later_are_found_and_other_ways_of_asking_are_not(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, data, 0.75).config)
    measured = replies(tmp_path, "mine", "seen")
    own = own_measurement(config, "trained", "vqa")
    other_ways = ({"prompt": "none"}, {"control": "text"}, {"samples": 4}, {"judge": "gpt"})
    # "seen-2" is what an error message advises; "ct-text" ends as a control is called
    for name in ("vqa", "seen-2", "ct-text", "vqa/50 %=x"):
        write_measurement(folder / "evaluation", replace(own, data=name), measured)
    for changes in other_ways:
        key = replace(own, data="asked-otherwise", **changes)
        write_measurement(folder / "evaluation", key, measured)
    later = ["ct-text", "seen-2", "vqa", "vqa/50 %=x"]
    assert gather(folder).data_sets == ["seen", "unseen", *later]
    page = write_report(folder).read_text()
    assert all(f"<h3>{name} " in page for name in later)
    assert "asked-otherwise" not in page


def test_what_an_earlier_version_measured_is_an_error_that_says_what_to_do(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    run_dir = write_run(tmp_path / "mine", data, 0.75)
    shutil.rmtree(run_dir.path / "evaluation")
    (run_dir.path / "evaluation").mkdir()
    (run_dir.path / "evaluation/trained-seen.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"an earlier version of RARL.*`rarl eval .*mine` measures"):
        write_report(run_dir.path)


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
    shutil.rmtree(run_dir.path / "evaluation")
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
        own = [reply.rewards["correct"] for reply in one.replies if reply]
        return 0 if not one.replies[best].rewards["correct"] else 1 if len(set(own)) > 1 else 2

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
    steps, values = decimate(pd.Series(np.where(places < 2500, np.nan, 1.0), places))
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
    assert {what: count for what, count, _ in seen.shares["Answers, closed"]} == {
        answer: closed.count(answer) for answer in set(closed)
    }
    assert (seen.skipped_rows, seen.skipped) == (1, ["row 3: the question is empty"])
    assert "no such Parquet file" in unseen.fault


def test_seconds_include_the_checkpoints(tmp_path: Path, data: dict[str, list[Example]]) -> None:
    write_run(tmp_path / "alone", data, 0.8)
    chart = curves(gather(tmp_path / "alone"))[-1]
    assert "save" in dict(chart.legend) and "save: mean 0.2" in chart.about
    for seed in (0, 1):
        write_run(tmp_path / f"several/rl-{seed}", data, 0.8, seed)
    chart = curves(gather(tmp_path / "several"))[-1]
    assert "save" in dict(chart.legend)
    assert chart.about == "Seconds per phase: rl 1.4"


def test_a_new_field_of_an_example_is_on_its_card() -> None:
    @dataclass(frozen=True)
    class Sided(Example):
        laterality: str | None = None

    asked = Sided("e", b"", "i", "q", "yes", "closed", modality="CT", laterality="left")
    shown = entry(Asked("d", [reply_to(asked, "yes")]), {("d", "i"): "0"}, 100)
    assert shown["facts"] == {"modality": "CT", "laterality": "left"}


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


def test_a_picture_keeps_within_its_bytes_and_192_pixels() -> None:
    url = thumbnail(noisy(0))
    assert url is not None and url.startswith("data:image/webp;base64,")
    encoded = base64.b64decode(url.partition(",")[2])
    assert len(encoded) * 500 * 4 / 3 < 11e6
    assert max(Image.open(io.BytesIO(encoded)).size) <= 192
    assert thumbnail(b"no picture") is None


@pytest.mark.long
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
    config = load_config(run_dir.config)

    def wordy(sample: Sample) -> Sample:
        reply = f"<think>{text}</think><answer>{sample.reply.answer}</answer>"
        return reply_to(sample.example, None, {"reasoning": 0.5}, text=reply)

    for label in ("base", "trained"):
        key = own_measurement(config, label, "photographs")
        spoil(run_dir.path / "evaluation", key, wordy, range(500))
    path = write_report(run_dir.path)
    page = path.read_text()
    assert page.count("data:image/") == 500
    print(f"{path.stat().st_size / 1e6:.1f} MB")
    assert path.stat().st_size < 15e6
