"""`rarl plan COMPARISON`: every training and measurement of a comparison, planned; no data need be
at hand."""

from __future__ import annotations

from pathlib import Path

from rarl.commands.compare import FoundComparison, read_plan
from rarl.config import IMPORT_PATH
from rarl.data.parquet import ParquetRows
from rarl.planning.comparison import ComparisonPlan, PlannedModel
from rarl.planning.plan import make_plan


def plan_comparison(
    path: Path, overrides: list[str], gpu: str | None, gpu_gib: float | None
) -> tuple[ComparisonPlan, list[str]]:
    """Returns the plan, and the data sets that are missing, each with its key. Raises UserError."""
    plan = read_plan(path, overrides, check=False)
    seeds = plan.comparison.seeds
    trainings = {
        name: make_plan(plan.config(name, seeds[0]), gpu, gpu_gib)
        for name, entry in plan.comparison.models.items()
        if entry.recipe
    }
    models = [
        PlannedModel(
            title=entry.title,
            runs=len(seeds),
            training=trainings.get(name),
            per_question=trainings[plan.trained_as(name)].per_question,
        )
        for name, entry in plan.comparison.models.items()
    ]
    absent = [f"{key}={where}" for key, where in plan.absent_data().items()]
    return ComparisonPlan(models, questions_of(plan)), absent


def questions_of(plan: FoundComparison) -> dict[str, int | None]:
    """Returns how many questions of each measured data set are asked; None where that is not known
    before the data are there."""
    most = plan.config(plan.comparison.reference, plan.comparison.seeds[0]).evaluation.max_examples
    found: dict[str, int | None] = {}
    for name, path in plan.data_sets().items():
        if IMPORT_PATH.match(path):
            found[name] = most
        elif Path(path).expanduser().exists():
            rows = len(ParquetRows(Path(path).expanduser()))
            found[name] = rows if most is None else min(rows, most)
        else:
            found[name] = None
    return found
