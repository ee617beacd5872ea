"""The report: its numbers, its choice of examples, its size."""

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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rarl.config import load_config
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.evaluation.lines import Compared, ComparedLine
from rarl.evaluation.measurements import (
    FINISHED,
    folder_of,
    own_measurement,
    part_path,
    remember_data,
)
from rarl.evaluation.options import OptionScores, OptionsKey
from rarl.evaluation.probe import Estimates, Pay, Probe, Share, as_json
from rarl.evaluation.report import write_report
from rarl.evaluation.report.charts import curves, decimate
from rarl.evaluation.report.examples import (
    Asked,
    all_questions,
    choose,
    entry,
    examples_json,
    safe_json,
    thumbnail,
)
from rarl.evaluation.report.gather import data_cards, gather
from rarl.evaluation.report.numbers import Measure, numbers_of
from rarl.evaluation.report.verdict import in_words, verdict
from rarl.evaluation.results import compare_models, difference, summarise
from rarl.evaluation.tables import cell, comparison_table, to_csv, to_latex
from rarl.samples import Sample
from rarl.schema import Example, Verdict
from rarl.tiny.dataset import draw_examples
from tests.records import reply_to, rights, spoil, write_measurement
from tests.report_runs import HOSTILE, STEPS, draw_data, replies, write_comparison, write_run


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    return draw_data()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, data: dict[str, list[Example]]) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"), data)


def test_what_a_probe_found_stands_in_the_report(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_run(tmp_path / "mine", data, 0.75)
    assert not gather(tmp_path / "mine").probes
    assert "Before training" not in write_report(tmp_path / "mine").read_text()
    share = Share(0.5, 0.421, 0.579)
    part = Estimates(
        data="train",
        kind="all",
        questions=64,
        images=24,
        greedy=share,
        right=share,
        passes={1: share, 2: share, 4: Share(0.81, 0.7, 0.9), 16: Share(0.98, 0.9, 1.0)},
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
    names = ["base (prompt reason)", "base (prompt plain)", "rarl", "sft"]
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
        write_run(tmp_path / f"same-{seed}", one, 0.6, 0)
    write_run(tmp_path / "alone/run", one, 0.6, 0)
    twice = numbers_of(gather(tmp_path)).mean("same", "seen")
    alone = numbers_of(gather(tmp_path / "alone/run")).mean("trained", "seen")
    assert twice and alone
    assert (twice.n, alone.n) == (120, 60)
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))


def test_a_number_of_few_replies_stands_without_an_interval() -> None:
    few, enough = (Measure(n, 0.0, -92.4, 92.4, {}, n) for n in (9, 10))
    assert in_words(few) == "0.0 points (too few for an interval, n 9)"
    assert in_words(enough) == "0.0 points (95 % interval −92.4 to +92.4, n 10)"
    form = "{:+.1f} {{\\scriptsize [{:+.1f}, {:+.1f}]}}"
    assert cell(form, 9, 50.0, 10.0, 90.0) == "+50.0"
    assert cell(form, 10, 50.0, 10.0, 90.0).endswith("[+10.0, +90.0]}")


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


def test_controls_samples_and_options_are_in_the_report_with_what_the_image_gives(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, data, 0.9).config)
    own = own_measurement(config, "trained", "seen")
    seen = replies(tmp_path, "mine", "seen")
    wrong = [reply_to(one.example, "something else") for one in seen]
    write_measurement(folder / "evaluation", replace(own, control="blank"), wrong)
    drawn = [
        replace(one, number=number)
        for one, other in zip(seen, wrong, strict=True)
        for number, one in enumerate((other, one, one))
    ]
    write_measurement(folder / "evaluation", replace(own, samples=3), drawn)
    chosen = [
        OptionScores(e.id, e.image_id, e.question, e.answer, [e.answer, "x"], [-1.0, -2.0], 0)
        for e in (one.example for one in seen[:30])
    ]
    options = folder_of(folder / "evaluation/options", OptionsKey("trained", "seen"))
    options.mkdir(parents=True)
    rows = pa.Table.from_pylist([vars(one) for one in chosen])
    pq.write_table(rows, part_path(options, 0))
    (options / FINISHED).write_text("")

    report = gather(folder)
    numbers = numbers_of(report)
    names = ["blank image", "majority of 3 samples", "likelihood of the options"]
    assert [one.name for one in report.otherwise] == [f"trained ({name})" for name in names]
    usual, blank = numbers.mean("trained", "seen"), numbers.mean("trained (blank image)", "seen")
    image = numbers.gain("trained (blank image)", "seen", against="with image")
    assert usual and blank and image
    assert (blank.mean, image.n) == (0.0, 60) and image.mean == pytest.approx(usual.mean)
    assert image.low < usual.mean < image.high and image.sign == 1
    majority = numbers.mean("trained (majority of 3 samples)", "seen")
    agreement = numbers.mean("trained (majority of 3 samples)", "seen", "agreement")
    assert majority and majority.mean == pytest.approx(usual.mean)
    assert agreement and 66.0 < agreement.mean <= 100.0
    likely = numbers.mean("trained (likelihood of the options)", "seen")
    assert likely and (likely.n, likely.mean) == (30, 100.0) and likely.low < 100.0
    page = write_report(folder).read_text()
    assert all(f"trained ({name})" in page for name in names)
    assert "With image minus this" in page
    means, leads = compare_models(report.lines, ["seen"], "trained")
    table = comparison_table(means, leads).set_index("")
    shown = str(table.loc["trained (blank image)", "with image − this"])
    assert shown.startswith(f"{image.mean:+.1f} [")
    assert "trained (blank image)" in to_latex(means, leads)
    assert "with image - this" in to_csv(means, leads)


def test_floors_are_lines_and_the_headline_is_about_the_best_that_needs_no_training(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    """The base is right more often with another prompt than with its own, and nearly all references
    are yes."""
    asked = [
        replace(
            one,
            question="Is it?",
            answer="yes" if i % 10 else "no",
            answer_type="closed",
            options=None,
        )
        for i, one in enumerate(data["seen"])
    ]
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, {"seen": asked}, 0.5).config)
    own = own_measurement(config, "base", "seen")
    better = [reply_to(one, one.answer if i % 3 else "x") for i, one in enumerate(asked)]
    write_measurement(folder / "evaluation", replace(own, prompt="none"), better)
    report = gather(folder)
    numbers = numbers_of(report)
    names = ["majority answer", "nearest question", "base", "base (prompt none)", "trained"]
    assert [one.name for one in report.lines] == names
    majority = numbers.mean("majority answer", "seen")
    assert majority and (majority.n, majority.mean) == (60, 90.0)
    assert not numbers.mean("majority answer", "seen", "completion_tokens")
    told = " ".join(verdict(report, numbers, "seen"))
    assert "The best that needs no training is majority answer with 90.0 % (n 60)" in told
    assert "a clear loss" in told and "a clear gain" not in told
    page = write_report(folder).read_text()
    assert "majority answer" in page and "base (prompt none)" in page
    means, leads = compare_models(report.lines, ["seen"], "trained")
    for text in (to_csv(means, leads), to_latex(means, leads)):
        assert all(name in text for name in names)
    row = comparison_table(means, leads).set_index("").loc["majority answer"]
    assert (row["n"], row["well formed"], row["tokens"]) == ("60", "–", "–")
    assert str(row["accuracy"]).startswith("90.0 [")
    (tmp_path / "data/seen.parquet").unlink()
    report = gather(folder)
    told = " ".join(verdict(report, numbers_of(report), "seen"))
    assert "The best that needs no training is base (prompt none) with 66.7 %" in told
    assert any("training data are not to be found" in note for note in report.notes)


def test_the_headline_says_that_a_gain_is_mostly_form_and_calls_nothing_clear_under_20(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, data, 0.95).config)
    key = own_measurement(config, "base", "seen")
    spoil(folder / "evaluation", key, lambda one: reply_to(one.example, None), range(1, 60))
    report = gather(folder)
    told = " ".join(verdict(report, numbers_of(report), "seen"))
    assert "Most of this gain is form: " in told and "n 1)" in told
    assert "Most of this gain is form" not in " ".join(
        verdict(report, numbers_of(report), "unseen")
    )
    # without training data there are no floors, so that the base is the best that needs no training
    (tmp_path / "data/seen.parquet").unlink()
    report = gather(folder)
    told = " ".join(verdict(report, numbers_of(report), "seen"))
    assert "a clear gain, mostly of form" in told
    few = {"seen": data["seen"][:19]}
    report = gather(write_run(tmp_path / "few/mine", few, 1.0).path)
    told = " ".join(verdict(report, numbers_of(report), "seen"))
    assert "fewer than 20 questions, so nothing is clear" in told
    assert "a clear gain" not in told and "Most of" not in told


def test_the_pictures_of_data_that_were_measured_later_are_found(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    folder = tmp_path / "mine"
    config = load_config(write_run(folder, {"seen": data["seen"]}, 0.75).config)
    write_examples(tmp_path / "elsewhere/other.parquet", data["unseen"])
    measured = [reply_to(replace(one, image=b""), one.answer) for one in data["unseen"]]
    own = own_measurement(config, "trained", "other")
    write_measurement(folder / "evaluation", own, measured)
    remember_data(folder / "evaluation", {"other": str(tmp_path / "elsewhere/other.parquet")})
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
