"""Groups of an evaluation: rates and gaps beside fairlearn's, intervals by simulation, and what
terminal, summary and tables say of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    equal_opportunity_difference,
    true_negative_rate,
    true_positive_rate,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_ind
from sklearn.metrics import accuracy_score

from rarl.display import Display
from rarl.evaluation.group_table import groups_in
from rarl.evaluation.groups import GAP, contrast, tukey
from rarl.evaluation.results import results, summarise, summary_of
from rarl.evaluation.tables import further_tables, to_csv
from rarl.intervals import holm
from rarl.samples import Sample
from tests.site_replies import asked, replied, site_replies

Drawn = tuple[np.ndarray, list[str], list[str]]


def draw_replies(
    rng: np.random.Generator, sizes: dict[str, int], apart: float = 0.1
) -> list[Sample]:
    """Yes/no questions of several sites, each about an image of its own, with replies of which
    from site to site by `apart` fewer are right."""
    samples: list[Sample] = []
    for place, (site, size) in enumerate(sizes.items()):
        for _ in range(size):
            truth = bool(rng.random() < 0.6)
            right = rng.random() < 0.9 - apart * place
            says = "yes" if truth == right else "no"
            samples.append(replied(asked(len(samples), site, truth), says))
    return samples


@pytest.mark.parametrize("seed", range(5))
def test_rates_and_gaps_are_fairlearns(seed: int) -> None:
    samples = draw_replies(np.random.default_rng(seed), {"A": 90, "B": 120, "C": 200, "D": 75})
    table = results({("m", "d"): {0: samples}}, ("all",), ("site",))
    found = {(row["group"], row["metric"]): row for row in table.to_dict("records")}
    truth = [one.example.answer == "yes" for one in samples]
    says = [one.reply.answer == "yes" for one in samples]
    sites = [one.example.site for one in samples]
    rates = {
        "accuracy": accuracy_score,
        "true_positive_rate": true_positive_rate,
        "true_negative_rate": true_negative_rate,
    }
    theirs = MetricFrame(metrics=rates, y_true=truth, y_pred=says, sensitive_features=sites)
    for metric in rates:
        for site in "ABCD":
            row, expected = found[site, metric], theirs.by_group.loc[site, metric]
            assert row["mean"] == pytest.approx(expected)
            assert row["low"] <= expected <= row["high"]
        assert found["all", metric]["mean"] == pytest.approx(theirs.overall[metric])
    difference = theirs.difference(method="between_groups")
    gap = found[GAP, "accuracy"]
    assert gap["mean"] == pytest.approx(difference["accuracy"])
    assert gap["low"] <= gap["mean"] <= gap["high"]
    opportunity = equal_opportunity_difference(truth, says, sensitive_features=sites)
    assert found[GAP, "true_positive_rate"]["mean"] == pytest.approx(opportunity)
    groups = groups_in(table, "site", "images")
    assert groups.worst is not None
    assert groups.worst.name == theirs.by_group["accuracy"].idxmin()


def draw_groups(
    rng: np.random.Generator, rights: Sequence[float], units: Sequence[int], within: bool
) -> Drawn:
    """1 to 3 questions about each image, which share its difficulty. Groups have images of their
    own, or, `within`, one to each question about the same images."""
    values, names, groups = [], [], []
    ease = rng.standard_normal(max(units))
    for place, (right, count) in enumerate(zip(rights, units, strict=True)):
        if within:
            sizes, alike = rng.integers(1, 3, count), ease
            chance = np.clip(right + 0.12 * np.repeat(alike, sizes), 0, 1)
        else:
            sizes = rng.integers(1, 4, count)
            chance = np.repeat(rng.beta(3 * right, 3 * (1 - right), count), sizes)
        own = np.repeat(np.arange(count), sizes)
        values.append((rng.random(len(chance)) < chance).astype(float))
        names += [f"{'' if within else place}/{one}" for one in own]
        groups += [f"g{place}"] * len(own)
    return np.concatenate(values), names, groups


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rights", "units", "within"),
    [
        ((0.7, 0.7), (40, 40), False),
        ((0.7, 0.55), (40, 80), False),
        ((0.95, 0.95), (30, 60), False),
        ((0.7, 0.7, 0.7, 0.7), (30, 60, 60, 150), False),
        ((0.8, 0.7, 0.6, 0.5), (50, 50, 50, 50), False),
        ((0.6,) * 8, (40,) * 8, False),
        ((0.7, 0.7, 0.7), (50, 50, 50), True),
    ],
)
def test_the_interval_of_the_gap_covers_the_truth_and_chance_is_seldom_taken_for_more(
    rights: tuple[float, ...], units: tuple[int, ...], within: bool
) -> None:
    """500 simulated data sets, so that the standard error is 1 point, and 92 % is 95 % less three
    of them. The interval may be wider than it says; where nothing sets the groups apart, no more
    than one in twenty may be called more than chance."""
    rng, truth = np.random.default_rng(1), max(rights) - min(rights)
    covered, called, behind = [], [], []
    for _ in range(500):
        found = contrast(*draw_groups(rng, rights, units, within))
        assert found is not None
        covered.append(found.low <= truth <= found.high)
        called.append(found.low > 0)
        tests = list(found.p.values())
        behind.append(min(holm(tests if len(tests) > 2 else tests[:1])) < 0.05)
    assert np.mean(covered) >= 0.92
    if truth == 0:
        assert np.mean(called) <= 0.08 and np.mean(behind) <= 0.08
    elif truth >= 0.3:
        assert np.mean(called) >= 0.9 and np.mean(behind) >= 0.85, "a large gap is seen"


def test_the_naive_interval_of_a_gap_would_never_hold_zero() -> None:
    """Why the gap has an interval of its own: the percentiles of a bootstrap of largest − smallest,
    as fairlearn's `n_boot` takes them, lie above 0 where nothing sets six groups apart."""
    rng = np.random.default_rng(2)
    values, units, groups = draw_groups(rng, (0.7,) * 6, (60,) * 6, False)
    own = [values[np.array(groups) == one] for one in sorted(set(groups))]
    gaps = []
    for _ in range(500):
        means = [rng.choice(one, len(one)).mean() for one in own]
        gaps.append(max(means) - min(means))
    assert np.quantile(gaps, 0.025) > 0.04
    found = contrast(values, units, groups)
    assert found is not None and found.low == 0.0


def test_two_groups_of_single_questions_have_students_interval_and_p() -> None:
    rng = np.random.default_rng(3)
    first, second = ((rng.random(n) < right).astype(float) for n, right in ((80, 0.8), (50, 0.5)))
    values, names = np.concatenate([first, second]), [str(i) for i in range(130)]
    found = contrast(values, names, ["a"] * 80 + ["b"] * 50)
    assert found is not None
    # but for its degrees of freedom, which are ours those of the smaller side
    theirs = ttest_ind(first, second, equal_var=False).statistic
    assert found.gap == pytest.approx(first.mean() - second.mean())
    assert found.p["a"] == found.p["b"] == pytest.approx(2 * student.sf(theirs, 49))
    reach = student.ppf(0.975, 49) * found.gap / theirs
    assert (found.low, found.high) == pytest.approx((found.gap - reach, found.gap + reach))
    assert found.rest == {"a": pytest.approx(found.gap), "b": pytest.approx(-found.gap)}
    assert tukey(3, 1000) > tukey(2, 1000) == pytest.approx(1.9623, abs=1e-3)


def test_repeating_every_question_about_an_image_makes_nothing_surer() -> None:
    values, units, groups = draw_groups(np.random.default_rng(4), (0.8, 0.6), (60, 60), False)
    once = contrast(values, units, groups)
    again = contrast(
        np.repeat(values, 5), np.repeat(units, 5).tolist(), np.repeat(groups, 5).tolist()
    )
    assert once is not None and again is not None
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    assert again.p == pytest.approx(once.p)


def test_a_group_of_which_all_are_right_is_not_certain() -> None:
    values = np.array([1.0] * 35 + [1.0] * 38 + [0.0] * 2)
    found = contrast(values, [str(i) for i in range(75)], ["a"] * 35 + ["b"] * 40)
    assert found is not None and found.low == 0.0 and found.p["a"] > 0.05
    assert 0.1 < found.high < 0.25
    alike = contrast(np.ones(80), [str(i) for i in range(80)], ["a"] * 40 + ["b"] * 40)
    assert alike is not None and alike.gap == 0.0 and alike.high > 0.03
    assert min(alike.p.values()) > 0.9


def test_holm_by_the_example_of_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_stepping_down_rejects(p: list[float]) -> None:
    """By its definition: from the smallest on, as long as p ≤ 0.05 / hypotheses left."""
    rejected = set()
    for done, place in enumerate(sorted(range(len(p)), key=lambda one: (p[one], one))):
        if p[place] * (len(p) - done) > 0.05:
            break
        rejected.add(place)
    adjusted = holm(p)
    assert {place for place, value in enumerate(adjusted) if value <= 0.05} == rejected
    assert all(value >= own for value, own in zip(adjusted, p, strict=True))


def test_groups_under_30_are_shown_and_never_ranked() -> None:
    right = {"A": 0.9, "B": 0.6, "C": 0.0, None: 0.0}
    samples = site_replies({"A": 60, "B": 30, "C": 29, None: 40}, right)
    summary = summarise(samples, ["site"])["groups"]["site"]
    ranked = {name: one["ranked"] for name, one in summary["groups"].items()}
    assert ranked == {"B": True, "A": True, "C": False, "unknown": False}
    assert summary["worst"] == "B" and summary["more_than_chance"]
    assert summary["gap"]["points"] == pytest.approx(30.0)
    assert summary["groups"]["B"]["minus_others"] == pytest.approx(-30.0)
    assert "p" not in summary["groups"]["C"]
    assert [one["units"] for one in summary["groups"].values()] == [30, 60, 29, 40]
    few = summarise(site_replies({"A": 60, "C": 29}, right), ["site"])["groups"]["site"]
    assert (few["worst"], few["gap"], few["more_than_chance"]) == (None, None, False)
    assert "fewer than two groups have 30 images, so none is ranked" in few["told"]


def test_patients_are_the_units_where_they_are_known() -> None:
    """29 patients of one site, with two images each, are too few for a rank."""
    samples = site_replies({"A": 80, "B": 58}, {"A": 0.9, "B": 0.5})
    known = [
        replace(one, example=replace(one.example, patient=f"p{place // 2}"))
        for place, one in enumerate(samples)
    ]
    found = summarise(known, ["site"])["groups"]["site"]
    assert found["unit"] == "patients"
    assert {name: one["units"] for name, one in found["groups"].items()} == {"A": 40, "B": 29}
    assert found["worst"] is None
    assert summarise(samples, ["site"])["groups"]["site"]["worst"] == "B"


def test_the_family_of_tests_is_all_columns_and_two_groups_are_one_test() -> None:
    samples = site_replies({"A": 60, "B": 60}, {"A": 0.9, "B": 0.7})
    further = [
        replace(one, example=replace(one.example, extra={"sex": "FM"[place % 2]}))
        for place, one in enumerate(samples)
    ]
    alone, both = (summarise(further, by)["groups"] for by in (["site"], ["site", "sex"]))
    p = alone["site"]["groups"]["A"]["p"]
    assert alone["site"]["groups"]["B"]["p"] == p < 0.02
    assert both["site"]["groups"]["A"]["p"] == pytest.approx(2 * p)


def test_a_model_that_goes_by_the_site_is_caught_by_equal_opportunity() -> None:
    """It is right as often at both, since it always says what most answers there are."""

    def samples(images: int) -> list[Sample]:
        found = []
        for index in range(images):
            site, common = ("A", True) if index < images / 2 else ("B", False)
            truth = common if index % 4 else not common
            found.append(replied(asked(index, site, truth), "yes" if common else "no"))
        return found

    found = summarise(samples(160), ["site"])["groups"]["site"]
    assert found["gap"]["points"] == pytest.approx(0.0) and not found["more_than_chance"]
    assert found["equal_opportunity_gap"] is None, "20 of B have yes as their answer: too few"
    found = summarise(samples(320), ["site"])["groups"]["site"]
    assert found["equal_opportunity_gap"]["points"] == pytest.approx(100.0)
    assert found["unequal_opportunity"] and not found["more_than_chance"]
    assert "true-positive rate 100.0 points (95 % interval 91" in found["told"]


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes",
    [
        {"A": 100, "B": 100},
        {"A": 400, "B": 60},
        {"A": 60, "B": 60, "C": 60, "D": 60, "E": 60, "F": 300},
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
def test_equal_opportunity_is_seldom_called_unequal_where_no_answer_follows_the_site(
    sizes: dict[str, int],
) -> None:
    """Of 100 data sets at least 95 are not flagged; where the sites lie 20 points apart from one to
    the next, the same flag is raised."""
    rng = np.random.default_rng(5)

    def flagged(apart: float) -> bool:
        found = summarise(draw_replies(rng, sizes, apart), ["site"])["groups"]["site"]
        return bool(found["unequal_opportunity"])

    assert sum(flagged(0.0) for _ in range(100)) <= 5
    assert sum(flagged(0.2) for _ in range(20)) >= 10


def test_the_terminal_names_the_worst_group_and_says_whether_that_is_chance(
    capfd: pytest.CaptureFixture[str],
) -> None:
    right = {"A": 0.5, "B": 0.9, "C": 1.0}
    before = site_replies({"A": 60, "B": 60, "C": 8}, dict.fromkeys("ABC", 0.5))
    after = site_replies({"A": 60, "B": 60, "C": 8}, right)
    Display().results(summary_of({"d": before}, {"d": after}, {}, ["site"]))
    shown = " ".join(capfd.readouterr().out.split())
    assert "d by site: accuracy in %" in shown
    assert "A 60 60 50.0 (37–63) 50.0 (37–63) B 60 60" in shown
    assert "C (not ranked) 8 8 50.0 100.0" in shown
    assert (
        "trained on d by site, A is worst, by more than chance: 50.0 %, 40.0 points below" in shown
    )
    Display().results(summary_of({"d": before}, {}, {}, ["site"]))
    shown = " ".join(capfd.readouterr().out.split())
    assert "base on d by site, A is lowest, by no more than chance gives" in shown


def test_a_comparisons_tables_have_groups_gaps_and_related_questions() -> None:
    samples = site_replies({"A": 60, "B": 40, "C": 9}, {"A": 0.9, "B": 0.5, "C": 0.5})
    twice = [
        one
        for each in samples
        for one in (
            each,
            replace(each, example=replace(each.example, id=f"{each.example.id}b", question="else")),
        )
    ]
    means = results({("base", "d"): {0: twice}, ("RARL", "d"): {0: twice}}, ("all",), ("site",))
    related, by_site = further_tables(means)
    assert related[0] == "questions about one image"
    line = related[1].set_index("").loc["RARL"].to_dict()
    assert str(line["right where related ones are"]).startswith("100.0 [")
    assert str(line["right where one is wrong"]).startswith("0.0 [")
    assert by_site[0] == "by site"
    cells = by_site[1].set_index(["metric", "group"])["RARL"]
    assert str(cells["accuracy", "B"]).startswith("50.0 [")
    assert str(cells["accuracy", "B"]).endswith("(n=80)")
    assert str(cells["accuracy", GAP]).startswith("40.0 [")
    assert cells["accuracy", "worst"] == "B (p < 0.001)"
    assert ("accuracy", "C (not ranked)") in cells.index
    no_leads = pd.DataFrame(
        columns=["model", "against", "metric", "n", "points", "won", "lost", "p"]
    )
    rows = list(csv.DictReader(io.StringIO(to_csv(means, no_leads))))
    [row] = [
        one
        for one in rows
        if (one["model"], one["by"], one["group"], one["metric"])
        == ("RARL", "site", "B", "accuracy")
    ]
    assert (row["mean"], row["units"]) == ("50.0", "40") and float(row["p"]) < 0.001
    assert {one["by"] for one in rows} == {"all", "site"}
    plain = to_csv(results({("base", "d"): {0: samples}}, ("all",)), no_leads)
    assert "by" not in plain.splitlines()[0].split(","), "without groups the file is as it was"
