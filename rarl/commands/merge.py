"""`rarl merge`: the adapters of several runs, of several sites say, as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rarl.adapters.origin import Origin
from rarl.config import Config, config_from, load_config
from rarl.display import Display
from rarl.errors import UserError
from rarl.paths import anchored
from rarl.sharing.members import (
    Member,
    Shares,
    merged,
    read_member,
    require_alike,
    require_new,
    shares_by_loss,
    shares_by_tokens,
    shares_of,
    write_merged,
)
from rarl.training.run_dir import RunDir


def merge(
    paths: Sequence[str],
    out: Path,
    weights: str,
    validation: str,
    exact: bool,
    rank: int | None,
    display: Display,
) -> Origin:
    """Merges the adapters of run directories or PEFT folders into the folder `out`, and returns
    what became of them. `weights` is "" for the answer tokens, or numbers such as "0.3,0.7";
    `validation` names the data that weights by loss are measured on. Raises UserError."""
    if exact and rank is not None:
        raise UserError(f"--exact keeps all ranks and --rank {rank} cuts them: give one of the two")
    if weights and validation:
        raise UserError("--weights and --validation: give one of the two")
    if len(paths) < 2 and rank is None:
        raise UserError("one adapter is nothing to merge: name two or more, or --rank to cut it")
    require_new(out, "--out")
    members = [read_member(path) for path in paths]
    require_alike(members, exact or rank is not None)
    if validation:
        config = configuration_of(paths, members)
        shares = shares_by_loss(losses_on(validation, members, config, display))
    elif weights:
        shares = given_shares(weights, len(members))
    else:
        shares = shares_by_tokens(members)
    adapter, origin = merged(members, shares, exact, rank)
    write_merged(adapter, origin, out)
    return origin


def given_shares(weights: str, count: int) -> Shares:
    """Returns the shares that numbers with commas between them stand for. Raises UserError."""
    try:
        values = [float(one) for one in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights}: expected numbers, such as 0.3,0.7") from None
    if len(values) != count:
        raise UserError(f"--weights {weights}: {len(values)} of them, for {count} adapters")
    return Shares(shares_of(values), "hand")


def configuration_of(paths: Sequence[str], members: Sequence[Member]) -> Config:
    """Returns the configuration of the first run directory among the paths, which says how
    questions are asked; defaults where there is none."""
    for path in paths:
        held = RunDir(Path(path)).config
        if held.is_file():
            return load_config(held, [f"run_dir={path}"])
    model = {"path": str(members[0].base_folder)}
    tree: dict[str, object] = {"run_dir": ".", "model": model, "data": {"train": None}}
    return config_from(anchored(tree, Path.cwd()), [], paths[0])


def losses_on(
    data: str, members: Sequence[Member], config: Config, display: Display
) -> list[float]:
    """Returns the mean loss of each adapter on the answers of a data set, in nats per token, asked
    as the configuration measures. Raises UserError."""
    from rarl.data.parquet import ParquetRows
    from rarl.system.models import resolve_model

    rows = ParquetRows(Path(data).expanduser())
    base = members[0].base_folder
    path = str(base) if (base / "config.json").is_file() else config.model.path
    model = resolve_model(path)
    # It brings PyTorch.
    from rarl.sharing.loss import validation_loss

    with display.counting(f"loss on {data}", len(rows) * len(members)) as advance:
        return [validation_loss(one.adapter, model, config, rows, advance) for one in members]
