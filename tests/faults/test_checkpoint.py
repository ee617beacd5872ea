"""Checkpoints: whole or not there, verified, the last few and the best."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from rarl.grpo.policy import adapter_arrays, adapter_parameters, load_policy
from rarl.training.checkpoint import find_checkpoint, restore_checkpoint, save_checkpoint
from rarl.training.inputs import Progress
from rarl.training.learner import Learner


@pytest.fixture
def learner(model_path: str) -> Learner:
    policy = load_policy(model_path, "float32", "cpu", 2, 4, seed=0)
    optimizer = torch.optim.AdamW(adapter_parameters(policy), lr=1e-2)
    return Learner(
        policy,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        Progress(0, 0),
    )


def step_once(learner: Learner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(learner.policy):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    learner.optimizer.step()
    learner.scheduler.step()


def same(a: PeftModel, b: PeftModel) -> bool:
    return all(
        (array == adapter_arrays(b)[name]).all() for name, array in adapter_arrays(a).items()
    )


def test_a_restored_learner_goes_on_to_the_same_bits(
    tmp_path: Path, learner: Learner, model_path: str
) -> None:
    for seed in range(3):
        step_once(learner, seed)
    save_checkpoint(tmp_path, learner, Progress(3, 4), 0.5, keep=2)
    other = load_policy(model_path, "float32", "cpu", 2, 4, seed=1)
    optimizer = torch.optim.AdamW(adapter_parameters(other), lr=1e-2)
    assert restore_checkpoint(tmp_path, other, optimizer) == Progress(3, 4)
    assert same(learner.policy, other)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0, last_epoch=2)
    restored = Learner(other, optimizer, scheduler, Progress(3, 4))
    for one in (learner, restored):
        step_once(one, 99)
    assert same(learner.policy, other)
    assert scheduler.last_epoch == learner.scheduler.last_epoch == 4


def test_the_last_two_and_the_best_are_kept(tmp_path: Path, learner: Learner) -> None:
    for step, score in enumerate([0.1, 0.9, 0.3, None, 0.8, 0.2], start=1):
        save_checkpoint(tmp_path, learner, Progress(step, step), score, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000002",
        "step_000005",
        "step_000006",
    ]


DAMAGES = {
    "cut": lambda folder: (folder / "optimizer.pt").write_bytes(
        (folder / "optimizer.pt").read_bytes()[:-7]
    ),
    "flipped": lambda folder: flip(folder / "adapter" / "adapter_model.safetensors"),
    "missing": lambda folder: (folder / "state.json").unlink(),
    "without hashes": lambda folder: (folder / "sha256.json").write_text("{"),
    "empty": lambda folder: empty(folder),
}


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, learner: Learner, damage: str
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, learner, Progress(step, step), None, keep=3)
    DAMAGES[damage](tmp_path / "step_000003")
    found = find_checkpoint(tmp_path)
    assert found.path == tmp_path / "step_000002"
    assert len(found.damaged) == 1 and str(tmp_path / "step_000003") in found.damaged[0]
    assert restore_checkpoint(tmp_path, learner.policy, learner.optimizer) == Progress(2, 2)
    save_checkpoint(tmp_path, learner, Progress(3, 3), None, keep=3)
    assert find_checkpoint(tmp_path).path == tmp_path / "step_000003"


def test_steps_that_are_made_anew_replace_damaged_ones(tmp_path: Path, learner: Learner) -> None:
    """However many are damaged, and whatever their scores: what is written now is kept."""
    for step, score in ((10, 0.5), (98, 0.9), (99, 0.1), (100, 0.1)):
        save_checkpoint(tmp_path, learner, Progress(step, step), score, keep=9)
    for step in (98, 99, 100):
        flip(tmp_path / f"step_{step:06d}" / "optimizer.pt")
    for step in (11, 12, 13):
        save_checkpoint(tmp_path, learner, Progress(step, step), 0.1, keep=2)
        assert find_checkpoint(tmp_path).path == tmp_path / f"step_{step:06d}"
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step_000010",
        "step_000012",
        "step_000013",
    ]


def test_one_that_was_being_written_does_not_count(tmp_path: Path, learner: Learner) -> None:
    whole = save_checkpoint(tmp_path, learner, Progress(1, 1), None, keep=2)
    # the second as earlier versions called it
    left_behind = [tmp_path / ".step_000002.partial-x1y2", tmp_path / ".step_000002.partial"]
    for folder in left_behind:
        shutil.copytree(whole, folder)
    assert find_checkpoint(tmp_path).path == whole
    save_checkpoint(tmp_path, learner, Progress(2, 2), None, keep=2)
    assert not any(folder.exists() for folder in left_behind)


def test_no_checkpoint_is_the_beginning(tmp_path: Path, learner: Learner) -> None:
    assert find_checkpoint(tmp_path).path is None
    assert restore_checkpoint(tmp_path, learner.policy, learner.optimizer) == Progress(0, 0)
