"""`dataset.json`, the card of a prepared data set: its counts, and which files lie beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rarl.data.parquet import CARD, ParquetRows, read_card
from rarl.errors import UserError
from rarl.files import file_hash

# Beside the card: the records that cannot be used, those that deserve a look, and those that
# --against has removed.
SKIPPED, DOUBTS, REMOVED = LISTS = ("skipped.jsonl", "doubts.jsonl", "removed.jsonl")
COUNTED = {"answer_types": "answer_type", "modalities": "modality", "organs": "organ"}


def split_counts(data: ParquetRows, rows: Sequence[int]) -> dict[str, Any]:
    """Returns what the card says of a split that consists of these rows. `images` counts different
    images; the counts of a kind begin with the most frequent."""
    images, rationales = data.column("image_id"), data.column("rationale")
    counts = {"questions": len(rows), "images": len({images[row] for row in rows})}
    patients = data.column("patient")
    if known := {patients[row] for row in rows} - {None}:
        counts["patients"] = len(known)
    kinds = {}
    for name, column in COUNTED.items():
        values = data.column(column)
        present = Counter(values[row] for row in rows if values[row])
        kinds[name] = dict(present.most_common())
    facts = [len(found or ()) for found in data.column("facts")]
    return (
        counts
        | kinds
        | {"rationales": sum(bool(rationales[row]) for row in rows)}
        | {f"with_{least}_facts": sum(facts[row] >= least for row in rows) for least in (1, 3)}
    )


def listed(counts: dict[str, int]) -> str:
    """Returns "3 closed, 1 open"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def hashed_files(folder: Path) -> list[dict[str, Any]]:
    """Returns path, bytes and SHA-256 of every Parquet file below the folder."""
    files = [path for path in sorted(folder.rglob("*.parquet")) if path.is_file()]
    return [
        {"path": str(f.relative_to(folder)), "bytes": f.stat().st_size, "sha256": file_hash(f)}
        for f in files
    ]


def card_splits(folder: Path) -> list[str]:
    """Returns the splits that the card in `folder` names; none if there is no card of ours."""
    card = read_card(folder)
    return list(card["splits"]) if card and isinstance(card.get("splits"), dict) else []


def changed_files(folder: Path) -> list[Path]:
    """Returns the files that the card in `folder` names and that are gone, or of another content.
    Raises UserError if it is no card of `rarl prepare`."""
    card = read_card(folder)
    if card is None:
        raise UserError(f"{folder / CARD}: not a card of `rarl prepare`; delete it")
    known = {folder / file["path"]: str(file.get("sha256")) for file in card["files"]}
    return [path for path, sha in known.items() if not path.is_file() or file_hash(path) != sha]


def require_replaceable(out: Path) -> None:
    """Raises UserError if `out` holds anything but what `rarl prepare` and `rarl data show` make.
    A card that is not ours does not count: other programs write a `dataset.json` too."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; OUT is the folder to be made")
    card, ours = read_card(out), set()
    if card is not None:
        ours = {sheet_path(out), *(out / name for name in (CARD, *LISTS))}
        # A large split is a folder of files.
        for file in (out / one["path"] for one in card["files"]):
            ours |= {file, *file.parents, sheet_path(out / file.relative_to(out).parts[0])}
    foreign = next((path for path in out.rglob("*") if path not in ours), None)
    if foreign is not None:
        such = f"such as {foreign.relative_to(out)}; choose another OUT, or empty it"
        raise UserError(f"{out}: holds files that are no data set of `rarl prepare`, {such}")


def sheet_path(data: Path) -> Path:
    """Returns where the sheet of examples of a prepared folder goes, or of one of its splits."""
    folder = data if data.is_dir() and data.suffix != ".parquet" else data.parent
    return folder / f"{data.stem}-examples.png"
