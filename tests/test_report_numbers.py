"""The report's numbers, the headline that is made of them, and its choice of examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarl.config import load_config
from rarl.evaluation.measurements import FINISHED, folder_of, own_measurement, part_path
from rarl.evaluation.options import OptionScores, OptionsKey
from rarl.evaluation.report import write_report
from rarl.evaluation.report.examples import all_questions, choose
from rarl.evaluation.report.gather import gather
from rarl.evaluation.report.numbers import Measure, numbers_of
from rarl.evaluation.report.verdict import in_words, verdict
from rarl.evaluation.results import compare_models, difference, summarise
from rarl.evaluation.tables import cell, comparison_table, to_csv, to_latex
from rarl.schema import Example
from rarl.tiny.dataset import draw_examples
from tests.records import reply_to, rights, spoil, write_measurement
from tests.report_runs import draw_data, replies, write_comparison, write_run


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
