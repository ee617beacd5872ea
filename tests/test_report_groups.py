"""The report's part about groups: which is the worst, of every model, and what kinds of questions
ask for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarl.evaluation.group_table import groups_json
from rarl.evaluation.lines import Compared, ComparedLine
from rarl.evaluation.measurements import FINISHED, folder_of, part_path
from rarl.evaluation.options import OptionScores, OptionsKey
from rarl.evaluation.report import write_report
from rarl.evaluation.report.gather import gather
from rarl.evaluation.report.groups import related_tables
from rarl.evaluation.report.numbers import numbers_of
from rarl.evaluation.results import summarise
from rarl.schema import Example
from tests.report_runs import draw_data, replies, write_comparison, write_sites


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    return draw_data()


def test_a_report_says_at_first_sight_which_group_is_the_worst(tmp_path: Path) -> None:
    run = write_sites(tmp_path / "mine")
    assert not gather(run.path).by and ">Groups<" in write_report(run.path).read_text()
    # `rarl eval RUN --by site` leaves a summary, by which the report knows
    found = summarise(replies(tmp_path, "mine", "seen"), ["site"])
    (run.path / "evaluation/summary.json").write_text(json.dumps({"base": {"seen": found}}))
    report = gather(run.path)
    assert report.by == ["site"]
    [column] = related_tables(report, numbers_of(report))["seen"].columns
    assert groups_json(column.groups) == found["groups"]["site"]
    assert [one.name for one in column.shown][::3] == ["Lakeside", "Harbour"]
    assert column.groups.is_behind and column.chart is not None
    assert column.chart.about.startswith("seen: accuracy by site: Lakeside (")
    page = write_report(run.path).read_text()
    assert page.index("By site, Lakeside is worst, by more than chance: ") < page.index("<svg")
    assert re.search(r'<tr class="unranked">\s*<th scope="row">Harbour', page)
    by_ability = dict(related_tables(report, numbers_of(report))["seen"].abilities)
    assert list(by_ability) == [one.name for one in report.lines]
    assert all(set(its) == {"perception", "reasoning"} for its in by_ability.values())
    assert "ANSWERS FOLLOW" not in page, "the images are those that were trained on"


def test_a_report_of_a_comparison_compares_the_groups_of_every_model(
    tmp_path: Path, data: dict[str, list[Example]]
) -> None:
    write_comparison(tmp_path, data)
    lines = [
        ComparedLine(title=title, prompt=prompt, runs={0: f"{run}-0", 1: f"{run}-1"})
        for title, run, prompt in (("Ours", "rarl", "reason"), ("SFT", "sft", "plain"))
    ]
    Compared(reference="Ours", lines=lines, by=["answer_type"]).write(tmp_path)
    report = gather(tmp_path)
    [column] = related_tables(report, numbers_of(report))["seen"].columns
    assert [name for name, _ in column.others] == [one.name for one in report.models]
    assert "Every model by answer_type on seen" in write_report(tmp_path).read_text()
    assert "unseen" in related_tables(report, numbers_of(report)), "for its related questions"


def test_margins_of_options_are_by_ability(tmp_path: Path) -> None:
    run = write_sites(tmp_path / "mine")
    asked = [one.example for one in replies(tmp_path, "mine", "seen")]
    folder = folder_of(run.path / "evaluation/options", OptionsKey("trained", "seen"))
    rows = []
    for one in (one for one in asked if one.options):
        margin = 3.0 if one.extra["question_type"] == "ABN" else 1.0
        known = (one.id, one.image_id, one.question, one.answer, list(one.options or ()))
        scored = OptionScores(*known, [margin * (o == one.answer) for o in one.options or ()], 0)
        rows.append(vars(replace(scored, correct=scored.options.index(one.answer))))
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), part_path(folder, 0))
    (folder / FINISHED).write_text("")
    report = gather(run.path)
    found = related_tables(report, numbers_of(report))["seen"]
    assert found.has_margins
    by_ability = dict(found.abilities)["trained (likelihood of the options)"]
    margins = {name: its["option_margin"].mean for name, its in by_ability.items()}
    assert margins == {"perception": pytest.approx(1.0), "reasoning": pytest.approx(3.0)}
    assert "Margin, perception" in write_report(run.path).read_text()
