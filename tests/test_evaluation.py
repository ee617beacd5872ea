"""Intervals and summaries against independent computations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from rarl.display import Display
from rarl.evaluation.measurements import Measurement
from rarl.evaluation.results import (
    detectable,
    difference,
    differences,
    questions_needed,
    results,
    summarise,
    summary_of,
)
from rarl.evaluation.ways import answered
from rarl.intervals import (
    Clustered,
    change_intervals95,
    fraction_intervals95,
    interval95,
    intervals95,
    tail,
)
from rarl.samples import Sample
from tests.records import (
    example,
    graded,
    numbered,
    read_measurement,
    reply_to,
    rights,
    write_measurement,
)


def test_interval_equals_scipys_bootstrap_for_independent_questions() -> None:
    values = np.random.default_rng(0).random(300) < 0.7
    ours = interval95(values, [str(i) for i in range(300)])
    theirs = stats.bootstrap(
        (values.astype(float),), np.mean, method="percentile", n_resamples=10_000, rng=1
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.007)


def test_questions_about_one_image_count_as_one() -> None:
    values = (np.random.default_rng(0).random(100) < 0.5).astype(float)
    alone = interval95(values, [str(i) for i in range(100)])
    repeated = interval95(np.repeat(values, 4), [str(i) for i in range(100) for _ in range(4)])
    assert repeated == pytest.approx(alone, abs=1e-9)
    assert interval95(values, [str(i) for i in range(100)]) == alone, (
        "the same input must give the same interval"
    )


def draw_accuracy(rng: np.random.Generator, images: int, right: float, wrong: float) -> Clustered:
    """1 to 3 questions about each image, which share its difficulty, on average right / (right +
    wrong)."""
    sizes = rng.integers(1, 4, images)
    chance = np.repeat(rng.beta(right, wrong, images), sizes)
    return (rng.random(len(chance)) < chance).astype(float), np.repeat(
        np.arange(images), sizes
    ).astype(str).tolist()


def draw_difference(rng: np.random.Generator, images: int, won: float, lost: float) -> Clustered:
    """1 to 3 questions about each image; where the image's questions are won more often, fewer are
    lost."""
    sizes = rng.integers(1, 4, images)
    ease = 2.0 * np.repeat(rng.beta(2, 2, images), sizes)
    luck = rng.random(len(ease))
    change = np.where(
        luck < won * ease, 100.0, np.where(luck > 1.0 - lost * (2.0 - ease), -100.0, 0.0)
    )
    return change, np.repeat(np.arange(images), sizes).astype(str).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("images", [100, 400])
@pytest.mark.parametrize(
    ("draw", "one", "other", "truth"),
    [
        (draw_accuracy, 6, 4, 0.6),
        (draw_accuracy, 9, 1, 0.9),
        (draw_difference, 0.15, 0.08, 7.0),
        (draw_difference, 0.06, 0.02, 4.0),
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    draw: Any, one: float, other: float, truth: float, images: int
) -> None:
    """2,000 simulated data sets, so that the coverage's standard error is 0.5 points. They share
    the resamples."""
    rng = np.random.default_rng(1)
    intervals = [
        i
        for _ in range(8)
        for i in intervals95([draw(rng, images, one, other) for _ in range(250)])
    ]
    coverage = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.93 <= coverage <= 0.97


def test_intervals_computed_together_equal_those_alone_and_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(2)
    samples = [draw_accuracy(rng, images, 3, 2) for images in (1, 2, 37, 37, 50)]
    samples.append((samples[2][0], ["one image"] * len(samples[2][1])))
    together = intervals95(samples)
    for (values, images), interval in zip(samples, together, strict=True):
        assert interval == pytest.approx(interval95(values, images), abs=1e-12)
    assert together[0] == together[0][::-1], "one image tells nothing of others"
    values, names = np.asarray(samples[4][0]), np.asarray(samples[4][1])
    groups = [values[names == name] for name in np.unique(names)]
    means = [
        np.concatenate([groups[k] for k in rng.integers(50, size=50)]).mean() for _ in range(20_000)
    ]
    level = stats.norm.cdf(np.sqrt(50 / 49) * stats.t.ppf(0.025, 49))
    assert together[4] == pytest.approx(tuple(np.quantile(means, [level, 1 - level])), abs=0.008)
    assert tail(50) == pytest.approx(level) and 0.0247 < tail(2000) < 0.025
    for wrong in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="have no interval"):
            intervals95([wrong])


@pytest.mark.parametrize("right", [0, 1, 8, 60, 67])
def test_shares_at_the_edge_have_wilsons_interval_where_images_are_questions(right: int) -> None:
    values = [float(i < right) for i in range(67)]
    [found] = fraction_intervals95([(values, [str(i) for i in range(67)])])
    theirs = binomtest(right, 67).proportion_ci(method="wilson")
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_at_the_edge_images_count_and_not_their_questions() -> None:
    """Nothing tells how alike the answers about one image are if all are right."""
    images = [f"image-{i // 4}" for i in range(80)]
    [found] = fraction_intervals95([([1.0] * 80, images)])
    theirs = binomtest(20, 20).proportion_ci(method="wilson")
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_changes_at_the_edge_are_not_certain(value: float) -> None:
    [(low, high)] = change_intervals95([([value] * 67, [str(i) for i in range(67)])])
    assert low <= value <= high and 0.03 < high - low < 0.15
    [(low, high)] = change_intervals95([([value] * 2, ["a", "b"])])
    assert low <= 0.0 <= high, "two pairs tell nothing"


@pytest.mark.slow
@pytest.mark.parametrize("images", [15, 60])
@pytest.mark.parametrize("right", [0.9, 0.97, 0.99])
def test_intervals_at_the_edge_cover_the_truth(right: float, images: int) -> None:
    """500 simulated data sets. The bootstrap's intervals would hold the truth in down to 26 %."""
    rng = np.random.default_rng(3)
    drawn = [draw_accuracy(rng, images, 10 * right, 10 * (1 - right)) for _ in range(500)]
    coverage = np.mean([low <= right <= high for low, high in fraction_intervals95(drawn)])
    assert coverage >= 0.92


def of(sample: Sample, **changes: Any) -> Sample:
    """The same reply to a question with other fields."""
    return replace(sample, example=replace(sample.example, **changes))


def test_a_summary_has_groups_by_further_columns_of_few_values() -> None:
    """Of a mixture, some rows have no such column."""
    further = [{"ward": "AB"[i % 2], "age": str(i), "type": "x"} for i in range(20)]
    samples = [of(graded(i, i % 2 > 0), extra=extra) for i, extra in enumerate(further)]
    summary = summarise([*samples, graded(20, True)])
    assert {name: part["accuracy"] for name, part in summary["by_column"]["ward"].items()} == {
        "A": 0.0,
        "B": 1.0,
        "unknown": 1.0,
    }
    assert [*summary["by_column"]] == ["ward"]
    table = results({("", ""): {0: samples}}, ["ward"])
    assert {(row.by, row.group, row.n) for row in table.itertuples()} == {
        ("ward", "A", 10),
        ("ward", "B", 10),
    }


def test_breakdowns_and_metrics_of_a_summary() -> None:
    one = [
        of(graded(i, i % 3 > 0), modality="CT" if i % 2 else "MR", organ="chest") for i in range(30)
    ]
    summary = summarise([*one, of(graded(30, True, "open"), organ="chest")])
    assert {name: part["n"] for name, part in summary["by_modality"].items()} == {
        "CT": 15,
        "MR": 15,
        "unknown": 1,
    }
    assert "by_organ" not in summary and "judge" not in summary and summary["reasoning"] is None
    assert "by_column" not in summary
    right = rights(one[1::2])
    assert summary["by_modality"]["CT"] == {
        "n": 15,
        "accuracy": pytest.approx(np.mean(right)),
        "ci95": pytest.approx(binomtest(int(sum(right)), 15).proportion_ci(method="wilson")),
    }
    closed = {name: summary["by_type"]["closed"][name] for name in ("n", "ci95")}
    assert summary["metrics"]["closed"] == closed | {
        "mean": summary["by_type"]["closed"]["accuracy"]
    }
    assert "choice" not in summary["metrics"] and "judge_correctness" not in summary["metrics"]
    assert summary["metrics"]["completion_tokens"]["mean"] == 5.0


def test_summary_by_type_and_paired_difference(tmp_path: Path) -> None:
    before = [
        graded(i, i % 2 == 0, "closed" if i < 40 else "open", f"image-{i // 2}") for i in range(100)
    ]
    after = [
        graded(i, i % 2 == 0 or i % 5 == 0, s.example.answer_type, s.example.image_id)
        for i, s in enumerate(before)
    ]
    summary = summary_of({"d": before}, {"d": after}, {"d": 3})
    base = summary["base"]["d"]
    assert (base["n"], base["accuracy"], base["well_formed"]) == (100, 0.5, 1.0)
    assert {kind: part["n"] for kind, part in base["by_type"].items()} == {"closed": 40, "open": 60}
    assert summary["skipped_rows"] == {"d": 3}
    change = summary["difference"]["d"]
    assert change["points"] == pytest.approx(10.0)
    assert (change["won"], change["lost"], change["p"]) == (10, 0, pytest.approx(2 * 0.5**10))
    assert 0 < change["ci95"][0] < 10 < change["ci95"][1]
    with pytest.raises(ValueError, match="not of the same questions"):
        summary_of({"d": before}, {"d": after[::-1]}, {})
    key = Measurement("base", "d", "plain")
    write_measurement(tmp_path, key, before)
    assert read_measurement(tmp_path, key) == before


def test_of_several_samples_the_first_counts_and_all_vote() -> None:
    samples = numbered([graded(i, i < 6) for i in range(10)], 3)
    summary = summary_of({"d": samples}, {}, {})["base"]["d"]
    assert (summary["n"], summary["accuracy"]) == (10, 0.6)
    found = summary["self_consistency"]
    assert (found["n"], found["samples"], found["agreement"]) == (10, 3, 1.0)
    assert list(found["abstention"]) == [str(tenth / 10) for tenth in range(10, 0, -1)]


def test_the_table_has_a_row_for_each_mean_and_groups_by_any_text_field() -> None:
    replies = [
        of(graded(i, i % 2 == 0), organ="lung" if i < 8 else "heart", dataset="a" if i < 4 else "b")
        for i in range(20)
    ]
    table = results({("m", "d"): {0: replies[:10], 1: replies[10:]}}, ("all", "organ", "dataset"))
    names = ["model", "data", "by", "group", "metric", "n", "units", "mean", "low", "high", "seeds"]
    assert list(table.columns) == [*names, "ranked", "rest", "p"]
    rows = {(row["by"], row["group"], row["metric"]): row for row in table.to_dict("records")}
    assert rows["organ", "lung", "accuracy"]["n"] == 8
    assert rows["dataset", "b", "accuracy"]["n"] == 16
    overall = rows["all", "all", "accuracy"]
    assert (overall["n"], overall["mean"], overall["seeds"]) == (20, 0.5, {0: 0.5, 1: 0.5})
    assert overall["low"] < 0.5 < overall["high"]


def test_differences_leave_out_seeds_with_other_questions() -> None:
    before = {0: [graded(i, False) for i in range(4)], 1: [graded(9, False)]}
    after = {0: [graded(i, i < 3) for i in range(4)], 1: [graded(8, True)], 2: [graded(7, True)]}
    table = differences({("new", "old", "d"): (before, after)}, ("accuracy",))
    [row] = table.to_dict("records")
    assert (row["model"], row["against"], row["metric"], row["n"]) == ("new", "old", "accuracy", 4)
    assert (row["points"], row["won"], row["lost"], row["p"]) == (75.0, 3, 0, 0.25)
    assert row["questions"] == 4


def well_formed(index: int, is_right: bool, in_form: bool) -> Sample:
    return reply_to(example(index), "yes", {"correct": is_right, "well_formed": in_form})


def test_a_difference_is_split_into_what_comes_with_the_form_and_what_does_not() -> None:
    """Of 40 questions the base answers 10 in the form that was asked for, half of them right."""
    before = [well_formed(i, i < 5, i < 10) for i in range(40)]
    after = [well_formed(i, i < 6 or i >= 20, True) for i in range(40)]
    change = difference(before, after)
    assert change["points"] == pytest.approx(100 * 21 / 40) and change["clear"]
    both = change["form"]["both_well_formed"]
    assert (both["n"], both["points"]) == (10, pytest.approx(10.0))
    assert change["form"]["points"] == pytest.approx(100 * 20 / 40)
    assert change["form"]["mostly"]
    never = difference([well_formed(i, False, False) for i in range(40)], after)
    assert never["form"]["points"] == never["points"]
    assert never["form"]["both_well_formed"] is None
    same = difference([well_formed(i, i < 5, True) for i in range(40)], after)
    assert same["form"]["points"] == pytest.approx(0.0) and not same["form"]["mostly"]


def test_the_terminal_shows_floors_and_each_n_and_says_what_is_form_and_what_is_greedy(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = [well_formed(i, i < 1, i < 1) for i in range(40)]
    after = [well_formed(i, i < 20, True) for i in range(40)]
    floor = [answered(one.example, "no") for one in before]
    floors = {"d": {"majority answer": floor}}
    Display().results(summary_of({"d": before}, {"d": after}, {}, floors=floors))
    shown = " ".join(capfd.readouterr().out.split())
    assert "greedy accuracy" in shown
    assert "no image: majority answer 40 0.0 (0–9) +50.0 (" in shown
    assert "d: +47.5 of the +47.5 points come with the form" in shown
    assert shown.endswith("on the 1 others the difference is +0.0"), "too few for an interval"
    Display().results(summary_of({"d": numbered(before, 4)}, {}, {}))
    shown = capfd.readouterr().out
    assert "of 4 samples, the first's accuracy" in shown and "greedy" not in shown


@pytest.mark.parametrize(("questions", "clear"), [(19, False), (20, True)])
def test_under_20_questions_nothing_is_called_clear(questions: int, clear: bool) -> None:
    before, after = ([graded(i, right) for i in range(questions)] for right in (False, True))
    change = difference(before, after)
    assert change["points"] == 100.0 and change["ci95"][0] > 0
    assert change["clear"] is clear
    # three seeds with the same questions do not make more of them
    runs = [dict.fromkeys(range(3), half) for half in (before, after)]
    [row, *_] = differences({("", "", ""): (runs[0], runs[1])}).to_dict("records")
    assert (row["n"], row["questions"]) == (3 * questions, questions)


def test_the_detectable_difference_is_seen_four_times_in_five() -> None:
    """By simulation: what the intervals of comparisons say would be seen, on average over these,
    is seen in others of their size that have it."""
    rng, n = np.random.default_rng(4), 300
    images = [f"i{place // 2}" for place in range(n)]

    def draws(points: float, count: int) -> list[tuple[np.ndarray, list[str]]]:
        won, lost = 0.2 + points / 200, 0.2 - points / 200
        values = rng.choice([1.0, -1.0, 0.0], p=[won, lost, 1 - won - lost], size=(count, n))
        return [(own, images) for own in values]

    found = change_intervals95(draws(0, 100))
    points = 100 * float(np.mean([detectable(*one) for one in found]))
    low, high = -points / 142.94, points / 142.94  # of an interval that says just that
    seen = np.mean([low > 0 for low, _ in change_intervals95(draws(points, 400))])
    assert seen == pytest.approx(0.8, abs=0.07)
    assert 100 * detectable(low, high) == pytest.approx(points, rel=1e-3)
    assert questions_needed(points, n, 100 * low, 100 * high) == pytest.approx(n, abs=1)
    assert questions_needed(points / 2, n, 100 * low, 100 * high) == pytest.approx(4 * n, abs=1)
