"""The world with a shortcut: how often marker and lesion agree, what a picture is without its
marker, and that the world tempts a reader who is none of the methods."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rarl.commands.compare import read_plan
from rarl.data.check import RowCheck
from rarl.schema import Example
from rarl.tiny import shortcut
from rarl.tiny.phantoms import ORGANS, SIZE, Domain, Facts, draw_facts, draw_image
from rarl.tiny.shortcut import MARKER, MARKER_AT, draw_controls, draw_pictures, marked
from tests.pictures import read
from tests.runs import REPOSITORY

CORNER = tuple(
    slice(start, start + size) for start, size in zip(MARKER_AT, MARKER.shape, strict=True)
)
# Of each measured data set, its pictures and those whose marker agrees with the lesion.
PROMISED = {"seen": (80, 76), "independent": (120, 60), "reversed": (240, 0), "unseen": (80, 40)}
Pixels = NDArray[np.uint8]


Written = Callable[[str, int], list[Example]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What the function `rarl.tiny.shortcut:write_NAME` writes for a seed, drawn once."""
    folder = tmp_path_factory.mktemp("shortcut")
    return cache(lambda name, seed: write_and_read(name, seed, folder))


def write_and_read(name: str, seed: int, folder: Path) -> list[Example]:
    path = folder / f"{name}-{seed}.parquet"
    getattr(shortcut, f"write_{name}")(path, seed)
    return read(path)


def pixels_of(example: Example) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(example.images[0])))


def has_marker(pixels: Pixels) -> bool:
    return bool((pixels[CORNER] == MARKER).all())


@pytest.mark.parametrize("seed", [0, 1, 41])
def test_marker_and_lesion_agree_as_often_as_promised(written: Written, seed: int) -> None:
    """Counted on the pixels and the answers, not on what the data say of themselves."""
    sets = {f"{name}_test": promised for name, promised in PROMISED.items()}
    for name, (pictures, agreeing) in {"train": (360, 342), **sets}.items():
        examples = written(name, seed)
        asked = [one for one in examples if one.answer in ("yes", "no")]
        assert len({one.image_id for one in examples}) == len(asked) == pictures, name
        agree = [has_marker(pixels_of(one)) == (one.answer == "yes") for one in asked]
        assert sum(agree) == agreeing, name
        assert [one.extra["marker"] == "agrees" for one in asked] == agree, name
        assert [one.extra["lesion"] == "none" for one in asked] == [
            one.answer == "no" for one in asked
        ]
        others = {one.extra["marker"] for one in examples if one.answer not in ("yes", "no")}
        assert others == (set() if name == "reversed_test" else {"other question"})
        assert all(RowCheck().facts_of(one, {}) for one in examples[:40])


def test_where_it_is_independent_the_marker_tells_nothing_of_the_lesion() -> None:
    rng = np.random.default_rng(5)
    drawn = list(draw_pictures("seen", 600, shortcut.INDEPENDENT, rng))
    lesion = np.array([one.facts.side is not None for one in drawn])
    marker = np.array([has_marker(one.pixels) for one in drawn])
    assert abs(marker[lesion].mean() - marker[~lesion].mean()) < 0.1
    faint = np.array([one.is_faint for one in drawn])
    assert 0.4 < faint[lesion].mean() < 0.6 and not faint[~lesion].any()


@pytest.mark.parametrize("domain", ["seen", "unseen"])
def test_without_marker_and_faintness_a_picture_is_todays_phantom(domain: Domain) -> None:
    """To the bit; with a marker, to the bit outside of it."""
    ours, theirs = np.random.default_rng(8), np.random.default_rng(8)
    compared = {"plain": 0, "marked": 0, "faint": 0}
    theirs.permutation(20)
    for one in draw_pictures(domain, 20, 10, ours):
        facts = draw_facts(theirs)
        faint = facts.side is not None and theirs.random() < shortcut.FAINT_SHARE
        phantom = draw_image(facts, domain, theirs)
        assert (one.facts, one.is_faint) == (facts, faint)
        differs = one.pixels != phantom
        if faint:
            compared["faint"] += 1
            assert differs.any()
            continue
        compared["marked" if has_marker(one.pixels) else "plain"] += 1
        assert not differs.any() or has_marker(one.pixels)
        differs[CORNER] = False
        assert not differs.any()
    assert min(compared.values()) >= 3, compared


@given(seed=st.integers(0, 2**32), organ=st.sampled_from(ORGANS), side=st.booleans())
def test_the_marker_never_touches_a_spot(seed: int, organ: str, side: bool) -> None:
    """Where a spot changes the picture, be its contrast as high as it likes, there is no marker
    within three pixels."""
    facts = Facts(organ, "right" if side else "left")
    without, spot = (
        draw_image(facts, "seen", np.random.default_rng(seed), contrast) for contrast in (0.0, 1e3)
    )
    near = np.zeros((SIZE, SIZE), dtype=bool)
    near[: CORNER[0].stop + 3, : CORNER[1].stop + 3] = True
    assert (without != spot).any()
    assert not (without != spot)[near].any()


def test_no_two_sets_share_an_image(written: Written) -> None:
    known: set[bytes] = set()
    for seed in (0, 1):
        for name in ("train", *(f"{name}_test" for name in PROMISED), "controls"):
            examples = written(name, seed)
            images = {one.image_id: one.images[0] for one in examples}
            assert len(set(images.values())) == len(images)
            assert len({one.id for one in examples}) == len(examples)
            assert not known & set(images.values()), (name, seed)
            known |= set(images.values())


@pytest.mark.parametrize("name", ["seen_test", "unseen_test", "controls"])
def test_a_set_is_a_function_of_its_seed(name: str, written: Written, tmp_path: Path) -> None:
    assert write_and_read(name, 1, tmp_path) == written(name, 1) != written(name, 0)


def test_the_two_training_sets_differ_in_nothing_but_the_rationales(written: Written) -> None:
    answers, rationales = written("train", 0), written("train_with_rationales", 0)
    assert not any(one.rationale for one in answers)
    assert all(one.rationale for one in rationales)
    named = [{**vars(one), "rationale": None} for one in rationales]
    assert named == [vars(one) for one in answers]
    assert 900 < len(answers) < 1020
    words = " ".join(f"{one.question} {one.answer} {one.rationale}" for one in rationales).lower()
    assert not {"marker", "bar", "plate", "corner"} & set(words.replace(".", " ").split())


def test_the_controls_are_pairs_that_differ_in_the_marker_alone() -> None:
    examples = draw_controls(0)
    assert len(examples) == 160 and {one.answer for one in examples} == {"no"}
    for start in range(0, 160, 4):
        nothing, alone, healthy, both = examples[start : start + 4]
        kinds = ["nothing", "marker alone", "healthy", "healthy with marker"]
        assert [one.extra["shown"] for one in examples[start : start + 4]] == kinds
        assert len({one.question for one in examples[start : start + 4]}) == 1
        for bare, with_marker in ((nothing, alone), (healthy, both)):
            pixels = pixels_of(bare)
            assert not has_marker(pixels)
            assert (marked(pixels) == pixels_of(with_marker)).all()
        # Noise has no structure: its coarse picture is even.
        assert np.ptp(pixels_of(nothing).reshape(8, 14, 8, 14).mean((1, 3))) < 10
        assert np.ptp(pixels_of(healthy).reshape(8, 14, 8, 14).mean((1, 3))) > 40
        assert nothing.rationale is None and "No round spot" in str(healthy.rationale)


def test_all_methods_of_the_comparison_have_the_same_pictures_and_steps() -> None:
    plan = read_plan(REPOSITORY / "configs" / "compare" / "shortcut.yaml", [])
    assert len(plan.data_sets()) == 5
    for name, entry in plan.comparison.models.items():
        config = plan.config(name, 0)
        has_rationales = "rationales" in entry.title
        function = "write_train_with_rationales" if has_rationales else "write_train"
        assert config.data.train == f"rarl.tiny.shortcut:{function}"
        assert list(config.data.eval) == list(plan.data_sets())
        assert all(hasattr(shortcut, path.split(":")[1]) for path in config.data.eval.values())
        assert config.train.steps == 120
        paid = {reward for reward, one in config.rewards.items() if one.weight}
        assert config.method == "sft" or has_rationales or not paid & {"reasoning", "judge"}


Tower = Callable[[Sequence[Pixels]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def tower(model_path: str, processor: Any) -> Tower:
    """What the base's frozen vision tower tells the language model, (pictures, 16 × 128)."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()

    def features(pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(pictures), 40):
            part = [Image.fromarray(one).convert("RGB") for one in pictures[start : start + 40]]
            pixels = processor.image_processor(images=part, return_tensors="pt")
            with torch.no_grad():
                tokens = model.model.visual(
                    pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]
                ).pooler_output
            found.append(tokens.reshape(len(part), -1).numpy())
        return np.concatenate(found)

    return features


def drawn(count: int, agreeing: int, seed: int) -> tuple[list[Pixels], list[bool]]:
    """Pictures, and whether each has a lesion."""
    pictures = list(draw_pictures("seen", count, agreeing, np.random.default_rng(seed)))
    return [one.pixels for one in pictures], [one.facts.side is not None for one in pictures]


def reader(features: NDArray[np.float32], labels: Sequence[bool]) -> Any:
    """A linear classifier, which is none of the methods."""
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=30.0)).fit(features, labels)


@pytest.mark.slow
def test_the_world_tempts_a_reader_of_the_frozen_tower(tower: Tower) -> None:
    """It is nearly always right where the marker agrees with the lesion, and much less often where
    it does not; and it is not without means, since without a shortcut it does better there."""
    agreeing, disagreeing = drawn(160, 20, 2), drawn(160, 0, 3)
    right = {}
    for agreement in (shortcut.AS_IN_TRAINING, shortcut.INDEPENDENT):
        pictures, lesions = drawn(240, agreement, 1)
        fitted = reader(tower(pictures), lesions)
        scores = [fitted.score(tower(shown), asked) for shown, asked in (agreeing, disagreeing)]
        right[agreement] = scores
    tempted, free = right[shortcut.AS_IN_TRAINING], right[shortcut.INDEPENDENT]
    assert tempted[0] > 0.95 and tempted[0] - tempted[1] > 0.2, right
    assert free[1] > tempted[1] + 0.15 and abs(free[0] - free[1]) < 0.15, right


@pytest.mark.slow
def test_the_marker_can_be_read_and_is_not_taken_for_a_spot(tower: Tower) -> None:
    """From the frozen tower, which has never seen one."""
    pictures, _ = drawn(200, shortcut.INDEPENDENT, 4)
    shown, _ = drawn(160, shortcut.INDEPENDENT, 5)
    fitted = reader(tower(pictures), [has_marker(one) for one in pictures])
    assert fitted.score(tower(shown), [has_marker(one) for one in shown]) > 0.9
    rng = np.random.default_rng(6)
    facts = [draw_facts(rng) for _ in range(320)]
    phantoms = [draw_image(one, "seen", rng) for one in facts]
    fitted = reader(tower(phantoms[:200]), [one.side is not None for one in facts[:200]])
    before = fitted.predict(tower(phantoms[200:]))
    after = fitted.predict(tower([marked(one) for one in phantoms[200:]]))
    assert (before == [one.side is not None for one in facts[200:]]).mean() > 0.95
    assert (before != after).mean() < 0.02
