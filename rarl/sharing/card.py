"""The model card of an adapter or an exported model: what it is, what it was trained on, what was
measured, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment

from rarl.adapters.origin import Origin, base_name, read_origin
from rarl.config import IMPORT_PATH, Config, load_config
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.ways import training_data
from rarl.prepare.card import split_counts
from rarl.prompts import FORM_LINES, evaluation_prompts
from rarl.training.run_dir import RunDir

TEXT = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
TEMPLATE = Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEXT)


@dataclass(frozen=True)
class Data:
    """A data set: its name without the folders that it lies in, and its counts, none where it is
    not at hand."""

    name: str
    role: str
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """What the template is given. `summary` is that of the run's measurements, None where it has
    none; `dtype` and `lost` are those of an exported model."""

    title: str
    base: str
    origin: Origin | None
    rank: int | None
    config: Config | None
    summary: dict[str, Any] | None
    leaks: list[str]
    data: list[Data]
    dtype: str | None = None
    lost: float = 0.0

    @property
    def base_is_public(self) -> bool:
        """Whether the base is called by a Hub id."""
        return "/" in self.base and not IMPORT_PATH.match(self.base)

    @property
    def asked(self) -> dict[str, str]:
        """How questions were asked in the measurements: the family of wordings, the first wording,
        and the line that asks for the form."""
        if self.config is None:
            return {}
        try:
            family = evaluation_prompts(self.config.prompts).families[self.config.prompts.eval]
        except UserError:  # the file of its wordings is gone
            return {}
        form = FORM_LINES[family.form]
        return {"family": self.config.prompts.eval, "wording": family.wordings[0], "form": form}

    def render(self) -> str:
        """Returns the card as Markdown, with the head that a hub reads."""
        return TEMPLATE.render(card=self)


def card_of(
    target: Path, adapter: Path, base: str, title: str, dtype: str | None = None, lost: float = 0.0
) -> ModelCard:
    """Returns the card of the adapter in a folder, which belongs to the run directory `target`, if
    that is one; `base` is what the model's base is called."""
    run_dir = RunDir(target)
    config = load_config(run_dir.config) if run_dir.config.is_file() else None
    held = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return ModelCard(
        title=title,
        base=base_name(base),
        origin=read_origin(adapter),
        rank=held.get("r"),
        config=config,
        summary=summary_in(run_dir),
        leaks=[str(leak["told"]) for leak in run_dir.read_leaks().values()],
        data=list(data_of(run_dir, config)) if config is not None else [],
        dtype=dtype,
        lost=lost,
    )


def summary_in(run_dir: RunDir) -> dict[str, Any] | None:
    """Returns what the run measured by itself, or what `rarl eval` measured of it in the same
    way."""
    later = run_dir.evaluation / "summary.json"
    summary = run_dir.read_summary()
    if summary is None and later.is_file():
        summary = json.loads(later.read_text(encoding="utf-8"))
    return summary if summary and summary.get("trained") else None


def data_of(run_dir: RunDir, config: Config) -> Iterator[Data]:
    """Yields the training data and the measured ones, with their counts as far as they are at
    hand."""
    train = training_data(config, run_dir.path)
    if train is not None:
        yield Data(short_name(str(config.data.train)), "trained on", counts_of(train))
    for name, source in config.data.eval.items():
        made = run_dir.data / f"data.eval.{name}.parquet"
        path = made if IMPORT_PATH.match(source) else Path(source).expanduser()
        yield Data(name, "measured on", counts_of(path))


def short_name(source: str) -> str:
    """Returns the last two parts of a path; a function's as it is."""
    return source if IMPORT_PATH.match(source) else "/".join(Path(source).parts[-2:])


def counts_of(path: Path) -> dict[str, Any]:
    """Returns the counts of a data set; none where it cannot be read."""
    try:
        rows = ParquetRows(path)
    except UserError:
        return {}
    return split_counts(rows, range(len(rows)))
