"""The test of the record: a new column of a data set reaches a reward, the samples, the
measurements and the report by an edit of two places, where it is declared and where it comes from.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.runs import REPOSITORY

# file → what is there today → what stands there afterwards
EDITS = {
    "rarl/schema.py": (
        "    organ: str | None = None\n",
        "    organ: str | None = None\n    laterality: str | None = None\n",
    ),
    "rarl/tiny/dataset.py": (
        "        organ=facts.organ,\n",
        "        organ=facts.organ,\n        laterality=facts.side or 'none',\n",
    ),
}

JOURNEY = """
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from rarl.config import RewardConfig
from rarl.data.parquet import ParquetRows, write_examples
from rarl.data.prepared import prepare_example
from rarl.evaluation.report import write_report
from rarl.prompts import plain_prompt
from rarl.rewards.registry import find_rewards
from rarl.rewards.total import score_groups
from rarl.samples import Sample, read_samples, write_samples
from rarl.schema import Rollout
from rarl.tiny.dataset import base_model, draw_examples
from tests.report_runs import write_run
from transformers import AutoProcessor

folder = Path(sys.argv[1])
write_examples(folder / "data.parquet", draw_examples("seen", 12, 0, "test"))
examples = ParquetRows(str(folder / "data.parquet")).read(list(range(12)))
processor = AutoProcessor.from_pretrained(str(base_model()))
groups = []
for example in examples:
    prepared = prepare_example(example, processor, plain_prompt())
    rollout = Rollout("<answer>left</answer>", [1, 2], "stop", 0)
    groups.append([Sample(prepared.example, prepared.prompt, rollout, prepared=prepared)])
settings = {"side_reward:on_the_left": RewardConfig(weight=1.0)}
score_groups(groups, find_rewards(settings), settings)
samples = [sample for group in groups for sample in group]
write_samples(folder / "samples.parquet", samples)
sides = pq.read_table(folder / "samples.parquet").column("example/laterality").to_pylist()
scored = [sample.score.total for sample in read_samples(folder / "samples.parquet")]
run_dir = write_run(folder / "run", {"seen": examples}, accuracy=0.8)
page = write_report(run_dir.path).read_text()
[measured] = list(run_dir.path.glob("evaluation/model=trained/**/*.parquet"))
kept = pq.ParquetFile(measured).read().column("example/laterality").to_pylist()
print(json.dumps({"sides": sides, "scored": scored, "kept": kept, "shown": "laterality" in page}))
"""

REWARD = """
def on_the_left(prompts, completions, laterality, **columns):
    return [float(one == "left") for one in laterality]
"""


def test_a_new_column_is_an_edit_of_two_places(tmp_path: Path) -> None:
    for name in ("rarl", "tests", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    for name, (before, after) in EDITS.items():
        text = (tmp_path / name).read_text()
        assert text.count(before) == 1, name
        (tmp_path / name).write_text(text.replace(before, after))
    (tmp_path / "side_reward.py").write_text(REWARD)
    done = subprocess.run(
        [sys.executable, "-c", JOURNEY, str(tmp_path / "out")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'bench'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"left", "none"} <= set(found["sides"])
    assert found["scored"] == [float(side == "left") for side in found["sides"]]
    assert found["kept"] == found["sides"]
    assert found["shown"]
