"""Merged adapters: what they are to their parts, what is refused, and how shares come about."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

from rarl.adapters.merging import (
    A,
    B,
    PeftAdapter,
    as_adapter,
    average,
    cut,
    distance,
    weighted_sum,
)
from rarl.adapters.origin import FILE, Origin, read_origin
from rarl.config import LoraConfig
from rarl.data.parquet import write_examples
from rarl.data.prepared import prepare_example
from rarl.errors import UserError
from rarl.grpo.policy import adapter_parameters, load_policy, read_adapter, save_adapter
from rarl.prompts import plain_prompt, target_reply
from rarl.schema import Example
from rarl.sharing.members import read_member, shares_by_loss, shares_by_tokens
from rarl.system.models import require_fitting_adapter, resolve_adapter
from tests.runs import assert_one_line_error, rarl_here

Matrix = NDArray[np.float64]


def random_adapter(
    rng: np.random.Generator, sizes: Sequence[tuple[int, int]], rank: int, alpha: int
) -> PeftAdapter:
    """An adapter on layers of these widths (in, out), as large as trained ones are."""
    arrays = {}
    for place, (wide, high) in enumerate(sizes):
        arrays[f"layer.{place}{A}"] = rng.normal(0, 0.3, (rank, wide)).astype(np.float32)
        arrays[f"layer.{place}{B}"] = rng.normal(0, 0.3, (high, rank)).astype(np.float32)
    return PeftAdapter(arrays, {"r": rank, "lora_alpha": alpha, "bias": "none"})


def dense(adapter: PeftAdapter) -> dict[str, Matrix]:
    """The whole change of each layer, by its definition."""
    scale = adapter.config["lora_alpha"] / adapter.config["r"]
    arrays = {name: array.astype(np.float64) for name, array in adapter.arrays.items()}
    return {layer: scale * arrays[layer + B] @ arrays[layer + A] for layer in adapter.layers}


def norm_of(changes: dict[str, Matrix]) -> float:
    return math.sqrt(sum(float((change**2).sum()) for change in changes.values()))


SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3)


@given(
    SIZES,
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 40), st.floats(0.01, 1)), min_size=1, max_size=4
    ),
    st.integers(0, 2**32),
)
@settings(max_examples=150)
def test_the_exact_merge_is_the_weighted_sum_of_the_changes(
    sizes: list[tuple[int, int]], parts: list[tuple[int, int, float]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(rng, sizes, rank, alpha) for rank, alpha, _ in parts]
    weights = [weight / sum(one[2] for one in parts) for *_, weight in parts]
    whole = weighted_sum([one.change() for one in adapters], weights)
    found = dense(as_adapter(whole, adapters[0]))
    for layer, change in found.items():
        wanted = sum(w * dense(one)[layer] for one, w in zip(adapters, weights, strict=True))
        scale = max(1.0, float(np.abs(wanted).max()))
        assert float(np.abs(change - wanted).max()) < 1e-6 * scale


@given(SIZES, st.integers(1, 6), st.integers(1, 14), st.integers(0, 2**32))
@settings(max_examples=150)
def test_the_error_that_is_told_is_the_true_one_and_no_rank_does_better(
    sizes: list[tuple[int, int]], rank: int, wanted: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(rng, sizes, rank, 16) for _ in range(2)]
    whole = weighted_sum([one.change() for one in adapters], [0.4, 0.6])
    found = as_adapter(cut(whole, wanted), adapters[0])
    assert found.rank == wanted
    exact = {
        layer: 0.4 * dense(adapters[0])[layer] + 0.6 * dense(adapters[1])[layer]
        for layer in found.layers
    }
    off = norm_of({layer: dense(found)[layer] - change for layer, change in exact.items()})
    told = distance(found.change(), whole)
    assert told == pytest.approx(off / norm_of(exact), abs=1e-6)
    # Eckart and Young: what is left are the further singular values
    rest = [np.linalg.svd(change, compute_uv=False)[wanted:] for change in exact.values()]
    assert told == pytest.approx(
        math.sqrt(sum(float((one**2).sum()) for one in rest)) / norm_of(exact), abs=1e-6
    )


def test_the_average_of_the_matrices_is_not_that_of_the_changes() -> None:
    rng = np.random.default_rng(3)
    adapters = [random_adapter(rng, [(9, 7)], 4, 8) for _ in range(2)]
    mean = average(adapters, [0.25, 0.75])
    for name, array in mean.arrays.items():
        parts = 0.25 * adapters[0].arrays[name] + 0.75 * adapters[1].arrays[name]
        np.testing.assert_allclose(array, parts, atol=1e-7)
    whole = weighted_sum([one.change() for one in adapters], [0.25, 0.75])
    exact = {"layer.0": 0.25 * dense(adapters[0])["layer.0"] + 0.75 * dense(adapters[1])["layer.0"]}
    off = norm_of({"layer.0": dense(mean)["layer.0"] - exact["layer.0"]}) / norm_of(exact)
    assert distance(mean.change(), whole) == pytest.approx(off, rel=1e-5) and off > 0.1
    # of equal adapters both are the adapter itself
    same = average([adapters[0]] * 2, [0.5, 0.5])
    assert distance(same.change(), adapters[0].change()) < 1e-6


@pytest.mark.parametrize(
    ("alphas", "alpha"), [((16, 16), 32), ((16, 4), 32), ((12, 12), 24), ((1, 1), 2)]
)
def test_steps_of_the_next_round_are_as_large(alphas: tuple[int, int], alpha: int) -> None:
    rng = np.random.default_rng(0)
    adapters = [random_adapter(rng, [(5, 5)], 8, one) for one in alphas]
    whole = weighted_sum([one.change() for one in adapters], [0.5, 0.5])
    found = as_adapter(whole, adapters[0])
    assert (found.rank, found.alpha) == (16, alpha)


def write_run(
    folder: Path, model_path: str, seed: int, rank: int = 8, alpha: int = 16, tokens: int = 0
) -> Path:
    """A run directory with an adapter as training leaves it, away from zero."""
    policy = load_policy(model_path, "float32", "cpu", rank, alpha, seed)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(policy, folder / "adapter")
    if tokens:
        origin = Origin(base="tiny", base_sha256="1", method="sft", steps=2, answer_tokens=tokens)
        origin.write(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def sites(model_path: str, tmp_path_factory: Any) -> list[Path]:
    folder = tmp_path_factory.mktemp("sites")
    tokens = {"north": 300, "south": 100}
    return [
        write_run(folder / name, model_path, place, tokens=count)
        for place, (name, count) in enumerate(tokens.items())
    ]


def test_a_merged_folder_is_a_peft_adapter_with_its_origin(
    sites: list[Path], tmp_path: Path, model_path: str
) -> None:
    out = tmp_path / "merged"
    done = rarl_here("merge", *sites, "--out", out)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "north: weight 0.750 (300 answer tokens)\n" in done.stdout
    assert "south: weight 0.250 (100 answer tokens); weights by answer tokens\n" in done.stdout
    assert "which is not the average of the changes B A" in done.stdout
    assert f"model.adapter={out} model.lora.rank=8 model.lora.alpha=16" in done.stdout
    origin = read_origin(out)
    assert origin and origin.merged == "average" and origin.answer_tokens == 400
    assert [(part.name, part.weight) for part in origin.parts] == [("north", 0.75), ("south", 0.25)]
    assert str(tmp_path.parent) not in (out / FILE).read_text(), "no path crosses a site's border"
    # PEFT loads it, and the next round begins with it
    base = AutoModelForImageTextToText.from_pretrained(model_path)
    held = PeftModel.from_pretrained(base, str(out)).state_dict()
    arrays = [read_adapter(one / "adapter")[0] for one in sites]
    for name, array in read_adapter(out)[0].items():
        wanted = 0.75 * arrays[0][name] + 0.25 * arrays[1][name]
        np.testing.assert_allclose(array, wanted, atol=1e-7)
        own = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        np.testing.assert_array_equal(held[own].numpy(), array)
    require_fitting_adapter(str(out), resolve_adapter(str(out), LoraConfig()), model_path)


def test_ranks_grow_exactly_and_are_cut_back(
    sites: list[Path], tmp_path: Path, model_path: str
) -> None:
    other = write_run(tmp_path / "other", model_path, 5, rank=4, alpha=4, tokens=100)
    exact, small = tmp_path / "exact", tmp_path / "small"
    done = rarl_here("merge", *sites, other, "--out", exact, "--exact", "--weights", "1,1,2")
    assert done.returncode == 0, done.stderr
    whole = PeftAdapter(*read_adapter(exact))
    assert whole.rank == 20 and "model.lora.rank=20" in done.stdout
    parts = [dense(read_member(str(one)).adapter) for one in (*sites, other)]
    for layer, change in dense(whole).items():
        wanted = 0.25 * parts[0][layer] + 0.25 * parts[1][layer] + 0.5 * parts[2][layer]
        assert float(np.abs(change - wanted).max()) < 1e-6
    # A merged adapter may be merged or cut again, and alone.
    done = rarl_here("merge", exact, "--out", small, "--rank", "6")
    assert done.returncode == 0, done.stderr
    origin = read_origin(small)
    assert origin and origin.merged == "svd" and origin.distance is not None
    assert (read_origin(exact) or origin).weighted_by == "hand"
    off = norm_of(
        {k: v - dense(PeftAdapter(*read_adapter(small)))[k] for k, v in dense(whole).items()}
    )
    assert origin.distance == pytest.approx(off / norm_of(dense(whole)), rel=1e-4)
    with pytest.raises(UserError, match=r"its rank is 20; set model\.lora\.rank to it"):
        resolve_adapter(str(exact), LoraConfig())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exact", "--rank", "4"], "--exact keeps all ranks and --rank 4 cuts them"),
        (["--weights", "1,2,3"], "--weights 1,2,3: 3 of them, for 2 adapters"),
        (["--weights", "1,0"], "weights 1, 0: not all are above 0"),
        (["--weights", "1,much"], "--weights 1,much: expected numbers, such as 0.3,0.7"),
        (["--weights", "1,1", "--validation", "x"], "--weights and --validation: give one"),
        (["--validation", "nowhere.parquet"], "nowhere.parquet: no such Parquet file"),
    ],
)
def test_what_contradicts_itself_is_refused(
    sites: list[Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = rarl_here("merge", *sites, "--out", tmp_path / "merged", *arguments)
    assert_one_line_error(done, message)
    assert not (tmp_path / "merged").exists()


def change_origin(run: Path, **values: object) -> None:
    path = run / "adapter" / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_cannot_be_merged_is_refused_in_one_line(
    sites: list[Path], tmp_path: Path, model_path: str
) -> None:
    def refused(other: Path, *parts: str) -> None:
        done = rarl_here("merge", sites[0], other, "--out", tmp_path / "merged")
        assert_one_line_error(done, *parts)
        assert not (tmp_path / "merged").exists()

    ranked = write_run(tmp_path / "ranked", model_path, 1, rank=4, alpha=8, tokens=5)
    refused(ranked, "of different ranks, 8 and 4", "--exact merges them")
    scaled = write_run(tmp_path / "scaled", model_path, 1, alpha=8, tokens=5)
    refused(scaled, "of different alphas, 16 and 8")
    based = tmp_path / "based"
    shutil.copytree(sites[1], based)
    change_origin(based, base_sha256="2", base="other")
    refused(based, "they are of different bases, tiny and other")
    change_origin(based, base="tiny")
    refused(based, "different bases, tiny and tiny, whose weights differ")
    uncounted = tmp_path / "uncounted"
    shutil.copytree(sites[1], uncounted)
    change_origin(uncounted, answer_tokens=None)
    refused(uncounted, "on how many answer tokens it was trained is not known", "give --weights")
    (uncounted / "adapter" / FILE).write_text("{")
    refused(uncounted, FILE, "cannot be read")
    refused(tmp_path / "none", f"{tmp_path / 'none'}: neither a finished run directory nor")
    dora = tmp_path / "dora"
    shutil.copytree(sites[1], dora)
    config = dora / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    refused(dora, "use_dora is set", "only plain LoRA is merged")
    few = tmp_path / "few"
    shutil.copytree(sites[1], few)
    adapter = PeftAdapter(*read_adapter(few / "adapter"))
    kept = {name: one for name, one in adapter.arrays.items() if "q_proj" in name}
    PeftAdapter(kept, adapter.config).save(few / "adapter")
    refused(few, "they have different targets: only one changes", "layers.0")
    with pytest.raises(UserError, match="it is on q_proj, and RARL's adapters are on q_proj, k_p"):
        require_fitting_adapter("few", few / "adapter", model_path)
    done = rarl_here("merge", sites[0], "--out", tmp_path / "merged")
    assert_one_line_error(done, "one adapter is nothing to merge")


def test_nothing_is_replaced(sites: list[Path], tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("of years")
    done = rarl_here("merge", *sites, "--out", tmp_path / "precious")
    assert_one_line_error(done, "precious: is there already; name another folder")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "of years"


def test_an_adapter_of_another_base_starts_no_run(
    sites: list[Path], tmp_path: Path, model_path: str
) -> None:
    base = json.loads((Path(model_path) / "config.json").read_text())
    base["text_config"]["num_hidden_layers"] = 28
    (tmp_path / "config.json").write_text(json.dumps(base))
    with pytest.raises(UserError, match=r"another base than model\.path, which has 28 layers"):
        require_fitting_adapter("mine", sites[0] / "adapter", str(tmp_path))


def test_tokens_are_counted_by_the_metrics_where_the_origin_is_missing(
    tmp_path: Path, model_path: str
) -> None:
    run = write_run(tmp_path / "old", model_path, 0)
    rows = [
        {"step": 1, "completion_tokens/total": 30.0},
        {"step": 2, "completion_tokens/total": 9.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    member = read_member(str(run))
    assert member.origin.answer_tokens == 39 and member.origin.base == Path(model_path).name
    other = write_run(tmp_path / "new", model_path, 0, tokens=13)
    assert shares_by_tokens([member, read_member(str(other))]).values == [0.75, 0.25]


def test_shares_by_loss_are_those_of_the_paper() -> None:
    found = shares_by_loss([0.5, 1.5]).values
    assert found[0] / found[1] == pytest.approx(math.e) and sum(found) == pytest.approx(1.0)


def test_the_loss_on_a_data_set_is_the_models_own(
    sites: list[Path], tmp_path: Path, model_path: str, processor: Any, examples: list[Example]
) -> None:
    """Held against transformers' own loss, reply by reply."""
    data, out = tmp_path / "validation.parquet", tmp_path / "merged"
    write_examples(data, examples[:5])
    done = rarl_here("merge", *sites, "--out", out, "--validation", data)
    assert done.returncode == 0, done.stderr
    origin = read_origin(out)
    assert origin is not None
    base = AutoModelForImageTextToText.from_pretrained(model_path)
    for part, site in zip(origin.parts, sites, strict=True):
        model: Any = PeftModel.from_pretrained(base, str(site / "adapter")).eval()
        total, tokens = 0.0, 0
        for example in examples[:5]:
            prepared = prepare_example(example, processor, plain_prompt())
            reply = target_reply(example, "think") + processor.tokenizer.eos_token
            batch = processor(
                text=[prepared.prompt.text + reply],
                images=[Image.fromarray(one) for one in prepared.pixels],
                return_tensors="pt",
            )
            size = len(processor.tokenizer(reply).input_ids)
            labels = batch["input_ids"].clone()
            labels[:, :-size] = -100
            with torch.no_grad():
                total += float(model(**batch, labels=labels).loss) * size
            tokens += size
        assert part.loss == pytest.approx(total / tokens, abs=1e-4)
        base = model.unload()
    weights = shares_by_loss([part.loss or 0.0 for part in origin.parts]).values
    assert [part.weight for part in origin.parts] == pytest.approx(weights)
