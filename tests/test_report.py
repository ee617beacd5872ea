"""The report: what it finds, what it refuses, its charts and cards, its size."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rarl.config import load_config
from rarl.data.images import BadImage
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.evaluation.lines import Compared, ComparedLine
from rarl.evaluation.measured_data import remember_data
from rarl.evaluation.measurements import own_measurement
from rarl.evaluation.probe import Estimates, Pay, Probe, ProbedShare, as_json
from rarl.evaluation.report import write_report
from rarl.evaluation.report.charts import curves, decimate
from rarl.evaluation.report.examples import Asked, entry, examples_json, safe_json, thumbnails
from rarl.evaluation.report.gather import data_cards, gather
from rarl.evaluation.report.numbers import numbers_of
from rarl.samples import Sample
from rarl.schema import Example, Verdict
from rarl.training.log import read_metrics
from tests.records import reply_to, spoil, write_measurement
from tests.report_runs import HOSTILE, STEPS, draw_data, replies, write_comparison, write_run


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    return draw_data()


def test_what_a_probe_found_stands_in_the_report(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_run(tmp_path / "mine", data, 0.75)
    assert not gather(tmp_path / "mine").probes
    assert "Before training" not in write_report(tmp_path / "mine").read_text()
    share = ProbedShare(0.5, 0.421, 0.579)
    part = Estimates(
        data="train",
        kind="all",
        questions=64,
        images=24,
        greedy=share,
        right=share,
        passes={
            1: share,
            2: share,
            4: ProbedShare(0.81, 0.7, 0.9),
            16: ProbedShare(0.98, 0.9, 1.0),
        },
        well_formed=share,
        mixed=share,
        without_spread=share,
        agreement=None,
    )
    pays = {"accuracy": Pay(0.49, 0.0, 0.02), "reasoning": Pay(None, 1.0, 1.0)}
    (tmp_path / "mine/probe").mkdir()
    held = as_json(Probe([part], pays), "train")
    (tmp_path / "mine/probe/probe.json").write_text(json.dumps(held))
    report = gather(tmp_path / "mine")
    assert report.probes[0].found == Probe([part], pays)
    assert any("mine: before training, the probe's advice was: " in one for one in report.notes)
    page = write_report(tmp_path / "mine").read_text()
    assert "pass@16" in page and "pass@2<" not in page
    assert re.search(r">81\.0</span><span class=\"ci\">70\.0 – 90\.0<", page)
    assert re.search(r"reasoning</th><td class=\"number\">–</td><td class=\"number\">100 %<", page)


def test_data_sets_measured_later_are_found_however_they_were_asked(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, data, 0.75).config)
    measured = replies(tmp_path, "mine", "seen")
    own = own_measurement(config, "trained", "vqa")
    # "seen-2" is what an error message advises; "ct-text" ends as a control is called
    for name in ("vqa", "seen-2", "ct-text", "vqa/50 %=x"):
        write_measurement(folder / "evaluation", replace(own, data=name), measured)
    judged = [
        replace(one, verdict=Verdict("scored", 3.0, 1.0, 1.0, 1.0, "fine")) for one in measured
    ]
    for key in (
        replace(own, data="asked-none", prompt="none"),
        replace(own, data="judged", judge="gpt"),
    ):
        write_measurement(folder / "evaluation", key, judged)
    later = ["asked-none", "ct-text", "judged", "seen-2", "vqa", "vqa/50 %=x"]
    report = gather(folder)
    assert report.data_sets == ["seen", "unseen", *later]
    page = write_report(folder).read_text()
    assert all(f"<h3>{name} " in page for name in later)
    numbers = numbers_of(report)
    assert numbers.mean("trained (prompt none)", "asked-none")
    assert [one.name for one in report.models] == ["base", "trained", "trained (prompt none)"]
    assert numbers.mean("trained", "judged")
    assert not numbers.mean("trained", "judged", "judge_correctness"), "another judge's verdicts"


def test_the_pictures_of_data_that_were_measured_later_are_found(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, {"seen": data["seen"]}, 0.75).config)
    write_examples(tmp_path / "elsewhere/other.parquet", data["unseen"])
    measured = [reply_to(replace(one, images=()), one.answer) for one in data["unseen"]]
    own = own_measurement(config, "trained", "other")
    write_measurement(folder / "evaluation", own, measured)
    elsewhere = {"other": str(tmp_path / "elsewhere/other.parquet")}
    remember_data(folder / "evaluation", elsewhere, {})
    shown = examples_json(gather(folder))
    images = {one["image"] for one in shown["examples"] if one["dataSet"] == "other"}
    assert images and images <= shown["images"].keys()
    [card] = [one for one in data_cards(gather(folder)) if one.name == "other"]
    assert not card.fault and card.questions == len(data["unseen"])


def test_a_comparisons_report_has_its_titles_its_reference_and_its_runs_alone(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_comparison(tmp_path, data)
    lines = [
        ComparedLine(title="Ours", prompt="reason", runs={0: "rarl-0", 1: "rarl-1"}),
        ComparedLine(title="SFT & more", prompt="plain", runs={0: "sft-0", 1: "sft-1"}),
    ]
    Compared(reference="SFT & more", lines=lines).write(tmp_path)
    report = gather(tmp_path)
    names = ["base (prompt reason)", "base (prompt plain)", "Ours", "SFT & more"]
    assert [one.name for one in report.models] == names
    assert report.best.name == "SFT & more", "the reference, though Ours is right more often"
    assert {run.name for run in report.runs} == {"Ours", "SFT & more"}
    assert "SFT &amp; more minus this" in write_report(tmp_path).read_text()


def test_a_comparison_of_numbers_of_examples_has_a_chart_of_each_metric(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_comparison(tmp_path, data)
    lines = [
        ComparedLine(
            title=f"{method}, {examples} examples",
            prompt=prompt,
            runs={0: f"{run}-0", 1: f"{run}-1"},
            method=method,
            examples=examples,
        )
        for method, run, prompt, examples in (
            ("Ours", "rarl", "reason", 240),
            ("Ours", "sft", "plain", 60),
        )
    ]
    Compared(reference="Ours, 240 examples", lines=lines).write(tmp_path)
    report = gather(tmp_path)
    numbers = numbers_of(report)
    page = write_report(tmp_path).read_text()
    few, many = (numbers.mean(f"Ours, {n} examples", "seen") for n in (60, 240))
    assert few is not None and many is not None
    told = f"Ours: {few.mean:.1f} with 60, {many.mean:.1f} with 240."
    assert f"seen: accuracy by examples. {told}" in page
    charts = sorted(path.name for path in tmp_path.glob("examples-*.svg"))
    assert {"examples-seen-accuracy.svg", "examples-unseen-accuracy.svg"} <= set(charts)
    root = ElementTree.parse(tmp_path / "examples-seen-accuracy.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert told in root.attrib["aria-label"]


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


@pytest.mark.parametrize("ends", [("", "/low", "/high"), ("",)], ids=["now", "by an earlier RARL"])
def test_what_is_measured_on_the_way_is_drawn_with_its_interval(
    tmp_path: Path, data: dict[str, list[Example]], ends: tuple[str, ...]
) -> None:
    run_dir = write_run(tmp_path / "mine", data, 0.8)
    rows = read_metrics(run_dir.metrics)
    for row in rows:
        value = 0.5 + 0.01 * row["step"] if row["step"] % 10 == 0 else None
        row |= {f"eval/far/off/accuracy{end}": value for end in ends}
    run_dir.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [chart] = [one for one in curves(gather(tmp_path / "mine")) if "on the way" in one.title]
    title = "Accuracy on far/off on the way"
    assert chart.about == f"{title} over the steps. mine: from 0.6 to 0.8."
    assert ("PolyCollection" in chart.svg) == (len(ends) > 1)


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

    asked = Sided("e", (), "i", "q", "yes", "closed", modality="CT", laterality="left")
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
    for count, most, side in ((1, 11e6, 192), (3, 33e6, 192), (16, 33e6, 83)):
        urls = thumbnails([noisy(0)] * count)
        assert len(urls) == count
        assert urls[0].startswith("data:image/webp;base64,")
        encoded = base64.b64decode(urls[0].partition(",")[2])
        assert len(encoded) * count * 500 * 4 / 3 < most
        assert max(Image.open(io.BytesIO(encoded)).size) <= side
    assert thumbnails([]) == []
    with pytest.raises(BadImage):
        thumbnails([noisy(0), b"no picture"])


@pytest.mark.long
def test_500_large_noisy_photographs_stay_below_15_mb(tmp_path: Path) -> None:
    text = "A long thought <of> many & words. " * 60
    pictures = [noisy(i) for i in range(25)]
    examples = [
        Example(
            f"e{i}",
            (pictures[i % 25],),
            f"i{i}",
            f"What is it, {i}?",
            "noise",
            "open",
            rationale=text,
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
