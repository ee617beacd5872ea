"""What the data sets hold, and what was left out of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.report.gather import Report, Run

MOST_COMMON = 6
SKIPPED_SHOWN = 20

Shares = list[tuple[str, int, float]]  # what, how many rows, of 100


@dataclass(frozen=True)
class DataCard:
    """`fault` says why nothing is known but the name, for instance because the file has moved
    since."""

    name: str
    role: str
    source: str
    path: str
    fault: str = ""
    questions: int = 0
    measured: int | None = None
    images: int = 0
    answer_types: Shares = field(default_factory=list)
    modalities: Shares = field(default_factory=list)
    organs: Shares = field(default_factory=list)
    answers: dict[str, Shares] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    skipped_rows: int = 0


def data_cards(report: Report) -> list[DataCard]:
    """Training data and measured data, each source once, from the first run that names it."""
    cards: dict[tuple[bool, str, str], DataCard] = {}
    for run in report.runs:
        names = dict.fromkeys([*run.config.data.eval, *run.base, *run.trained])
        measured = [(False, name, run.source(name)) for name in names]
        for is_training, name, source in [(True, "train", run.config.data.train), *measured]:
            if (is_training, name, source) not in cards:
                cards[is_training, name, source] = make_card(run, name, source, is_training)
    return sorted(cards.values(), key=lambda card: card.role == "measured")


def make_card(run: Run, name: str, source: str, is_training: bool) -> DataCard:
    path = run.data_path("data.train" if is_training else f"data.eval.{name}", source)
    lines = skipped_lines(run.path / f"skipped-{name}.txt")
    counted = ((run.summary or {}).get("skipped_rows") or {}).get(name, len(lines))
    role = "trained on" if is_training else "measured"
    measured = None if is_training else len(run.base.get(name) or run.trained.get(name) or [])
    try:
        rows = ParquetRows(path)
    except UserError as error:
        return DataCard(
            name, role, source, str(path), fault=str(error), measured=measured, skipped_rows=counted
        )
    types, answers = rows.column("answer_type"), rows.column("answer")
    return DataCard(
        name=name,
        role=role,
        source=source,
        path=str(path),
        questions=len(rows),
        measured=measured,
        images=len(set(rows.column("image_id"))),
        answer_types=shares(types),
        modalities=shares(rows.column("modality")),
        organs=shares(rows.column("organ")),
        answers={
            kind: shares([a for a, t in zip(answers, types, strict=True) if t == kind], fold=True)
            for kind in sorted(set(types))
        },
        skipped=lines[:SKIPPED_SHOWN],
        skipped_rows=counted,
    )


def shares(values: list[str | None], fold: bool = False) -> Shares:
    """The most common values and the rest together, with their share; nothing where no row has
    one."""
    known = Counter((v.strip().lower() if fold else v) if v else "not given" for v in values)
    if not values or set(known) == {"not given"}:
        return []
    common = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    listed = common[:MOST_COMMON] if len(common) > MOST_COMMON + 1 else common
    rest = len(values) - sum(count for _, count in listed)
    if rest:
        listed = [*listed, (f"{len(common) - len(listed)} others", rest)]
    return [(what, count, 100.0 * count / len(values)) for what, count in listed]


def skipped_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
