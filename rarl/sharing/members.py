"""The adapters that are to be merged: read, held against each other, weighed, and made one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rarl.adapters.merging import PeftAdapter, as_adapter, average, cut, distance, weighted_sum
from rarl.adapters.origin import (
    WEIGHTS,
    MergedPart,
    Origin,
    WeightedBy,
    base_name,
    read_origin,
    tokens_in,
    weights_hash,
)
from rarl.errors import UserError
from rarl.files import file_hash, replacing_folder
from rarl.grpo.policy import read_adapter
from rarl.system.models import find_adapter
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir


@dataclass(frozen=True)
class Member:
    """One of the adapters: what it is called, its PEFT folder, what it holds, and where it came
    from."""

    name: str
    folder: Path
    adapter: PeftAdapter
    origin: Origin

    @property
    def base_folder(self) -> Path:
        """Where its base was when it was trained; it may be gone."""
        return Path(str(self.adapter.config.get("base_model_name_or_path")))


def read_member(path: str) -> Member:
    """Reads the adapter of a run directory, or a PEFT folder. Where `origin.json` is missing, the
    run directory's metrics are asked. Raises UserError."""
    folder = find_adapter(path, named=path)
    adapter = PeftAdapter(*read_adapter(folder))
    adapter.require_plain(path)
    place = Path(path).expanduser().resolve()
    place = place.parent if place.name == "adapter" else place
    origin = read_origin(folder)
    if origin is None:
        base = str(adapter.config.get("base_model_name_or_path"))
        rows = read_metrics(RunDir(place).metrics)
        steps = max((row["step"] for row in rows), default=0)
        tokens, sha = tokens_in(rows, steps), weights_hash(Path(base))
        origin = Origin(base=base_name(base), base_sha256=sha, steps=steps, answer_tokens=tokens)
    return Member(place.name, folder, adapter, origin)


def require_alike(members: Sequence[Member], exact: bool) -> None:
    """Raises UserError where adapters are of different bases, or change different layers, or,
    unless the merge is `exact`, are of different ranks or scales."""
    first = members[0]
    for other in members[1:]:
        pair = f"{first.folder} and {other.folder}"
        mine, its = first.origin, other.origin
        known = mine.base_sha256 is not None and its.base_sha256 is not None
        if mine.base_sha256 != its.base_sha256 if known else mine.base != its.base:
            same = ", whose weights differ" if mine.base == its.base else ""
            raise UserError(
                f"{pair}: they are of different bases, {mine.base} and {its.base}{same}; merge "
                "adapters of one base"
            )
        if odd := set(first.adapter.layers) ^ set(other.adapter.layers):
            told = f"they have different targets: only one changes {min(odd)}"
            raise UserError(f"{pair}: {told}; merge adapters of the same layers")
        if first.adapter.sizes != other.adapter.sizes:
            raise UserError(f"{pair}: their layers differ in size, so they are of different bases")
        for what, key in (("ranks", "r"), ("alphas", "lora_alpha")):
            values = [one.adapter.config[key] for one in (first, other)]
            if not exact and values[0] != values[1]:
                raise UserError(
                    f"{pair}: they are of different {what}, {values[0]} and {values[1]}, which an "
                    "average cannot be of; --exact merges them, and so does --rank"
                )


def shares_of(values: Sequence[float]) -> list[float]:
    """Returns the values over their sum. Raises UserError unless all are numbers above 0."""
    if not all(0 < value < math.inf for value in values):
        raise UserError(f"weights {', '.join(f'{one:g}' for one in values)}: not all are above 0")
    return [value / sum(values) for value in values]


def shares_by_tokens(members: Sequence[Member]) -> Shares:
    """Returns shares in proportion to the answer tokens that each was trained on: the weights of
    Fed-MedLoRA (arXiv 2601.22124), whose code counts the labels of the training data. Raises
    UserError where a count is not known."""
    for one in members:
        if not one.origin.answer_tokens:
            raise UserError(
                f"{one.folder}: on how many answer tokens it was trained is not known, since it "
                "has neither origin.json nor a run's metrics.jsonl; give --weights by hand"
            )
    counts = [float(one.origin.answer_tokens or 0) for one in members]
    return Shares(shares_of(counts), "answer tokens")


def shares_by_loss(losses: list[float]) -> Shares:
    """Returns shares in proportion to exp(1 − loss), with the loss of each on the same validation
    data in nats per token: the weights of Fed-MedLoRA+ (arXiv 2601.22124), as its code has them."""
    # The shares are the same with any constant in place of 1, and with this one none overflows.
    values = shares_of([math.exp(min(losses) - loss) for loss in losses])
    return Shares(values, "loss", losses)


@dataclass(frozen=True)
class Shares:
    """How much each adapter counts (all add up to 1), by what, and its loss where that was
    measured."""

    values: list[float]
    by: WeightedBy
    losses: list[float] | None = None


def merged(
    members: Sequence[Member], shares: Shares, exact: bool, rank: int | None
) -> tuple[PeftAdapter, Origin]:
    """Returns the average, or with `exact` the sum of the changes with all ranks, or with a `rank`
    that sum cut back to it, and where it came from. Raises UserError where they do not fit
    together."""
    require_alike(members, exact or rank is not None)
    adapters = [one.adapter for one in members]
    whole = weighted_sum([one.change() for one in adapters], shares.values)
    if rank is not None:
        found = as_adapter(cut(whole, rank), adapters[0])
    else:
        found = as_adapter(whole, adapters[0]) if exact else average(adapters, shares.values)
    counts = [one.origin.answer_tokens for one in members]
    parts = [
        MergedPart(
            name=one.name,
            weight=share,
            sha256=file_hash(one.folder / WEIGHTS),
            answer_tokens=one.origin.answer_tokens,
            loss=shares.losses[place] if shares.losses is not None else None,
        )
        for place, (one, share) in enumerate(zip(members, shares.values, strict=True))
    ]
    return found, Origin(
        base=members[0].origin.base,
        base_sha256=members[0].origin.base_sha256,
        answer_tokens=None if None in counts else sum(one or 0 for one in counts),
        merged="svd" if rank is not None else "exact" if exact else "average",
        weighted_by=shares.by,
        distance=distance(found.change(), whole),
        parts=parts,
    )


def write_merged(adapter: PeftAdapter, origin: Origin, folder: Path) -> None:
    """Writes a standard PEFT folder with its origin, whole or not at all."""
    with replacing_folder(folder) as temporary:
        adapter.save(temporary)
        origin.write(temporary)


def require_new(folder: Path, option: str) -> None:
    """Raises UserError where there is something already that would be replaced."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{option} {folder}: is there already; name another folder, or delete it")


def next_round(folder: Path) -> str:
    """Returns with which keys a training begins with the adapter in a folder."""
    adapter = PeftAdapter(*read_adapter(folder))
    keys = [f"model.adapter={folder}", f"model.lora.rank={adapter.rank}"]
    return f"next round: rarl train CONFIG {' '.join(keys)} model.lora.alpha={adapter.alpha}"


def told(origin: Origin) -> list[str]:
    """Returns what a merge came to, as lines for people."""
    lines = []
    for part in origin.parts:
        known = [f"{part.answer_tokens:,} answer tokens"] if part.answer_tokens else []
        known += [f"loss {part.loss:.3f}"] if part.loss is not None else []
        counts = f" ({', '.join(known)})" if known else ""
        lines.append(f"{part.name}: weight {part.weight:.3f}{counts}")
    lines[-1] += f"; weights by {origin.weighted_by}"
    far = f"{100 * (origin.distance or 0.0):.3g} % of its norm away"
    lines.append(
        {
            "average": "average of A and of B, which is not the average of the changes B A: it is "
            f"{far} from that; --exact gives that itself",
            "exact": "the average of the changes B A, exactly",
            "svd": f"the average of the changes B A, cut back by SVD: it is {far} from that",
        }[origin.merged or "average"]
    )
    return lines
