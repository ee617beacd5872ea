"""The columns by which groups are made: which there are, and where they are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rarl.cli import app
from rarl.commands.train import train_and_evaluate
from rarl.config import load_config
from rarl.data.parquet import write_examples
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation.groups import grouping_columns, groups_of, require_columns
from rarl.evaluation.results import summarise
from tests.report_runs import write_sites
from tests.runs import REPOSITORY
from tests.samples import reply_to
from tests.site_replies import asked, site_replies


@pytest.mark.parametrize(
    ("by", "told"),
    [
        (
            ["Sex"],
            r"nothing in test has a column 'Sex' with values; did you mean 'sex'\?; there are",
        ),
        (["ward"], "no column"),
        (["site", "organ"], "nothing in test has a column 'organ' with values; there are question"),
        (["patient"], "'patient' may tell who somebody is, and makes no groups; there are "),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    by: list[str], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "test.parquet"
    rows = [asked(i, "A", patient="p", extra={"sex": "F", "empty": None}) for i in range(3)]
    write_examples(path, rows)
    told = told.replace("no column", "nothing in test has a column 'ward' with values; there are ")
    with pytest.raises(UserError, match=told) as caught:
        require_columns(by, {"test": str(path)})
    listed = str(caught.value).partition("there are ")[2].split(", ")
    assert listed == ["question", "answer", "answer_type", "site", "sex"]
    require_columns(["sex", "site", "answer_type"], {"test": str(path)})


def test_a_column_of_the_users_own_is_meant_also_where_its_name_means_something_here() -> None:
    rows = [
        asked(i, None, patient=f"p{i}", extra={"unit": "AB"[i % 2], "dataset": "CD"[i % 2]})
        for i in range(4)
    ]
    replies = [reply_to(one, "<answer>yes</answer>") for one in rows]
    assert groups_of(replies, "unit") == ["A", "B", "A", "B"]
    assert groups_of(replies, "dataset") == ["C", "D", "C", "D"]
    assert grouping_columns(replies) == ["unit", "dataset"]


def test_a_column_of_one_data_set_is_enough(tmp_path: Path) -> None:
    for name, site in (("one", "A"), ("other", None)):
        write_examples(tmp_path / f"{name}.parquet", [asked(i, site) for i in range(3)])
    data = {name: str(tmp_path / f"{name}.parquet") for name in ("one", "other")}
    require_columns(["site"], data)
    with pytest.raises(UserError, match="nothing in other has a column 'site'"):
        require_columns(["site"], {"other": data["other"]})


def test_columns_are_kept_in_the_configuration_and_summary_json_is_json() -> None:
    recipe = REPOSITORY / "configs/demo.yaml"
    assert load_config(recipe).evaluation.by == []
    assert load_config(recipe, ["evaluation.by=[sex, site]"]).evaluation.by == ["sex", "site"]
    with pytest.raises(UserError, match=r"evaluation\.by.*valid list"):
        load_config(recipe, ["evaluation.by=sex"])
    samples = site_replies({"A": 40, "B": 40, "C": 3}, {"A": 0.9, "B": 0.5, "C": 1.0})
    assert json.loads(json.dumps(summarise(samples, ["site"])))["groups"]["site"]["worst"] == "B"


def test_rarl_eval_takes_columns_and_names_those_that_there_are(tmp_path: Path) -> None:
    run = write_sites(tmp_path / "mine")
    done = CliRunner().invoke(app, ["eval", str(run.path), "--by", "site, Organs"])
    assert isinstance(done.exception, UserError)
    told = "evaluation.by: nothing in data.eval.seen has a column 'Organs' with values; did you "
    assert str(done.exception).startswith(f"{told}mean 'organ'?; there are question, answer, ")
    assert str(done.exception).endswith("organ, site, question_type")


def test_a_finished_run_says_how_its_groups_are_compared(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_sites(tmp_path / "mine")
    found = summarise(site_replies({"A": 40, "B": 40}, {"A": 0.9, "B": 0.5}), ["organ"])
    run.summary.write_text(json.dumps({"base": {"seen": found}}))
    for by, told in (("[organ]", False), ("[organ, site]", True)):
        train_and_evaluate(load_config(run.config, [f"evaluation.by={by}"]), Display())
        shown = capfd.readouterr().out
        assert "is already finished" in shown
        assert (f"rarl eval {run.path} --by site" in shown) == told
