"""What supervised fine-tuning needs of its data, checked before anything starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rarl.config import PromptsConfig
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prompts import training_prompts


def require_rationales(data: str, rows: NDArray[np.int64], prompts: PromptsConfig) -> None:
    """Raises UserError at the start for what `target_reply` would refuse in the middle of a run."""
    families = training_prompts(prompts, 0).families
    if all(families[name].form == "answer" for name, weight in prompts.train.items() if weight):
        return
    rationales = ParquetRows(data).column("rationale")
    bad = [int(row) for row in rows if not (rationales[row] or "").strip()]
    if bad:
        raise UserError(
            f"{data}: row {bad[0]} has no rationale to imitate (nor have {len(bad) - 1} others of {len(rows)}), but "
            "prompts.train asks for thinking: add rationales, or set prompts.train={none: 1} prompts.eval=none"
        )
