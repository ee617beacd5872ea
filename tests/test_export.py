"""Exported models: the same model in another folder, with a card that says what it is."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from rarl.adapters.origin import FILE, Origin
from rarl.commands.export import CARD
from rarl.config import dump_config, load_config
from rarl.data.parquet import write_examples
from rarl.data.prepared import prepare_example
from rarl.prompts import plain_prompt
from rarl.schema import Example
from rarl.sharing.export import CONVERTER
from rarl.training.run_dir import RunDir
from tests.runs import REPOSITORY, assert_one_line_error, rarl_here
from tests.test_merge import change_origin, write_run

MEASURED = {"n": 40, "accuracy": 0.5, "ci95": [0.36, 0.64]}
REASONED = {"n": 38, "mean": 0.75, "ci95": [0.6, 0.9]}
LEAK = "LEAK: mine: 3 of its 40 images are in the training data, and 0 nearly so"


@pytest.fixture(scope="module")
def run(model_path: str, tmp_path_factory: Any, examples: list[Example]) -> Path:
    """A run directory as training leaves it: an adapter, its origin, and what was measured."""
    folder = write_run(tmp_path_factory.mktemp("secret-place") / "mine", model_path, 0, tokens=1234)
    change_origin(folder, base_sha256=None)
    train = folder.parent / "ward" / "train.parquet"
    write_examples(train, examples)
    overrides = [f"run_dir={folder}", f"data.train={train}", f"data.eval={{mine: {train}}}"]
    config = load_config(REPOSITORY / "configs/demo.yaml", [*overrides, "seed=7"])
    run_dir = RunDir(folder)
    run_dir.config.write_text(dump_config(config))
    trained = MEASURED | {"accuracy": 0.9, "ci95": [0.8, 0.96], "reasoning": REASONED}
    change = {"points": 40.0, "ci95": [22.5, 55.0], "clear": True, "reasoning": None}
    floor = MEASURED | {"model_minus_this": change | {"points": 31.0}}
    summary = {
        "base": {"mine": MEASURED | {"reasoning": None}},
        "trained": {"mine": trained},
        "difference": {"mine": change},
        "floors": {"mine": {"majority answer": floor}},
    }
    run_dir.summary.write_text(json.dumps(summary))
    run_dir.leaks.write_text(json.dumps({"mine": {"told": LEAK, "warns": True}}))
    return folder


def logprobs(model: Any, processor: Any, examples: list[Example]) -> torch.Tensor:
    """The log-probs of all tokens of some prompts, as transformers gives them."""
    found = []
    for example in examples:
        prepared = prepare_example(example, processor, plain_prompt())
        images = [Image.fromarray(one) for one in prepared.pixels]
        batch = processor(text=[prepared.prompt.text], images=images, return_tensors="pt")
        with torch.no_grad():
            rows = model(**batch).logits[0].float().log_softmax(-1)
        ids = batch["input_ids"][0]
        found.append(rows[:-1].gather(-1, ids[1:, None])[:, 0])
    return torch.cat(found)


def test_the_exported_model_is_base_and_adapter(
    run: Path, tmp_path: Path, model_path: str, processor: Any, examples: list[Example]
) -> None:
    out = tmp_path / "whole"
    done = rarl_here("export", run, "--merged", out)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    base = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    before = logprobs(base, processor, examples[:3])
    tuned = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    wanted = logprobs(tuned, processor, examples[:3])
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.dtype == torch.float32
    found = logprobs(model, AutoProcessor.from_pretrained(out), examples[:3])
    assert float((found - wanted).abs().max()) < 1e-4
    assert float((before - wanted).abs().max()) > 0.1, "the adapter must do something"
    for path in out.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644, path
        if path.suffix != ".safetensors":
            assert "secret-place" not in path.read_text(), path
            assert str(REPOSITORY) not in path.read_text(), path
    assert json.loads((out / FILE).read_text())["answer_tokens"] == 1234


def test_rounding_is_told_in_parts_of_what_the_adapter_changes(
    run: Path, tmp_path: Path, model_path: str
) -> None:
    out = tmp_path / "short"
    done = rarl_here("export", run, "--merged", out, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    told = re.search(r"in bfloat16, whose rounding loses ([\d.]+) % of what", done.stdout)
    assert told
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    base = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    plain = {name: one.clone() for name, one in base.state_dict().items()}
    exact = PeftModel.from_pretrained(base, str(run / "adapter")).merge_and_unload().state_dict()
    lost = changed = 0.0
    for name, short in model.state_dict().items():
        if "language_model.layers" in name and "_proj.weight" in name:
            lost += float((short.float() - exact[name]).double().square().sum())
            changed += float((exact[name] - plain[name]).double().square().sum())
    assert changed > 0 and float(told[1]) == pytest.approx(100 * (lost / changed) ** 0.5, abs=0.06)
    assert f"rounding to it loses {told[1]} %" in " ".join((out / CARD).read_text().split())


def test_the_card_has_data_figures_leaks_and_limits(run: Path, tmp_path: Path) -> None:
    done = rarl_here("export", run, "--merged", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "whole" / CARD).read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers" and "base_model" not in head
    for part in (
        "# whole\n",
        "**Research software. Not for diagnosis.**",
        "1,234 answer tokens, seed 7; rewards format 0.2, accuracy 1",
        "| ward/train.parquet | trained on | 24 | ",
        "| mine | measured on | 24 | ",
        "| mine | 40 | 50.0 (36–64) | 90.0 (80–96) | +40.0 (+22.5 to +55.0) |",
        "| mine, reasoning | 38 | – | 75.0 (60–90) | – |",
        "| mine, no image: majority answer | 40 | 50.0 (36–64) | | +31.0 (+22.5 to +55.0) |",
        f"- {LEAK}\n",
        "- mine has only 40 questions.",
        "--dtype float32",
    ):
        assert part in card, part
    # Tables and lists are Markdown's only where no blank line parts their rows.
    assert not re.search(r"\|\n\n\|", card) and "\n\n\n" not in card, card


def test_a_merged_adapter_that_nobody_measured_says_so(
    run: Path, tmp_path: Path, model_path: str
) -> None:
    other = write_run(tmp_path / "other", model_path, 3, tokens=766)
    change_origin(other, base_sha256=None)
    done = rarl_here("merge", run, other, "--out", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    done = rarl_here("export", tmp_path / "merged", "--merged", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "whole" / CARD).read_text()
    assert "**It was not measured.**" in card and "| mine | 0.617 | 1,234 | – |" in card
    assert "average of their matrices A and B, which is" in card
    assert "which stayed where they are" in card and "\n\n\n" not in card


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--dtype", "int8"], ["--dtype int8: unknown; known are float32, bfloat16, float16"]),
        (["--gguf"], [f"llama.cpp's {CONVERTER} is not on the PATH", "leave --gguf out"]),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    run: Path,
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = rarl_here("export", run, "--merged", tmp_path / "out", *arguments)
    assert_one_line_error(done, *parts)
    assert not (tmp_path / "out").exists()


def test_another_base_or_folder_is_refused(run: Path, tmp_path: Path, model_path: str) -> None:
    done = rarl_here("export", run, "--merged", tmp_path.parent)
    assert_one_line_error(done, "--merged", "is there already")
    done = rarl_here("export", tmp_path, "--merged", tmp_path / "out")
    assert_one_line_error(done, f"{tmp_path}: neither a finished run directory nor")
    other = write_run(tmp_path / "other", model_path, 0)
    Origin(base="base", base_sha256="0" * 64).write(other / "adapter")
    done = rarl_here("export", other, "--merged", tmp_path / "out")
    assert_one_line_error(done, "has other weights than the adapter was trained on")


def test_a_converter_that_fails_is_told_and_the_model_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in llama.cpp's place, since that cannot be had here: what is tested is how it is
    called and what becomes of its failure."""
    program = tmp_path / CONVERTER
    program.write_text(
        "import json, sys\n"
        "arguments = sys.argv[1:]\n"
        "out = arguments[arguments.index('--outfile') + 1]\n"
        "if '--mmproj' in arguments: sys.exit('Traceback\\nModel not supported')\n"
        "open(out, 'w').write(json.dumps(arguments))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}")
    out = tmp_path / "whole"
    done = rarl_here("export", run, "--merged", out, "--gguf")
    assert_one_line_error(done, f"{CONVERTER} failed: Model not supported", "is whole")
    called = json.loads((out / "whole-model.gguf").read_text())
    assert called == [str(out), "--outfile", str(out / "whole-model.gguf"), "--outtype", "f32"]
    assert (out / "model.safetensors").is_file() and (out / CARD).is_file()
