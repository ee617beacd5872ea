"""How the reader of findings ranks CRIMSON's RadJudge cases (arXiv 2603.06183), reports that
radiologists put in order.

    python bench/radjudge.py CRIMSON/RadJudge/test_cases.py [-v]

The cases whose order depends on the patient's age or complaint are left out, since the reader knows
neither. A case counts where each of its orders holds: "C1 > C2" by any lead, "C1 = C2" by a
difference of at most `EQUAL`, as in CRIMSON's own test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rarl.replies.matching import compare_findings

EQUAL = 0.01


def read_cases(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields category and case, without those that need the patient's context."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    for group in ast.literal_eval(found):
        for case in group["tests"]:
            if not any("context" in one for one in case["candidates"].values()):
                yield group["category"], case


def holds(order: str, values: Mapping[str, float]) -> bool:
    first, sign, second = order.split()
    lead = values[first] - values[second]
    return lead > 0 if sign == ">" else abs(lead) <= EQUAL


def main(
    cases: Path, verbose: Annotated[bool, typer.Option("-v", help="each case")] = False
) -> None:
    rows = list(read_cases(cases))
    right = 0
    for category, case in rows:
        truth, orders = case["ground_truth"], case["expected_ranking"]
        values = {
            key: compare_findings(one["text"], truth).f1 for key, one in case["candidates"].items()
        }
        orders = [orders] if isinstance(orders, str) else orders
        kept = all(holds(order, values) for order in orders)
        right += kept
        if verbose:
            shown = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
            print(f"{'right' if kept else 'wrong'} {case['id']} {category}: {orders} {shown}")
    print(f"{right} of {len(rows)}")


if __name__ == "__main__":
    typer.run(main)
