"""Configuration files: what is read, and that every mistake is named."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from rarl.config import Config, dump_config, load_config
from rarl.errors import UserError
from rarl.keys import known_keys

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("recipes/*/*.yaml")])
MINIMAL = "run_dir: runs/x\nmodel: {path: a/b}\ndata: {train: t.parquet}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_configurations_parse_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


def test_overrides_reach_nested_keys_and_are_typed(minimal: Path) -> None:
    config = load_config(
        minimal,
        [
            "rollout.group_size=4",
            "train.learning_rate=1e-5",
            "data.eval.mine=x.parquet",
            "data.max_pixels=null",
        ],
    )
    assert config.rollout.group_size == 4
    assert config.train.learning_rate == 1e-5
    assert config.data.eval == {"mine": str(Path.cwd() / "x.parquet")}
    assert config.data.max_pixels is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.grup_size=4",
            "unknown key 'rollout.grup_size'; did you mean 'rollout.group_size'?",
        ),
        ("group_size=4", "unknown key 'group_size'; did you mean 'rollout.group_size'?"),
        ("train.lerning_rate=1", "did you mean 'train.learning_rate'?"),
        ("zzzzzzzz=1", "unknown key 'zzzzzzzz'"),
        ("train.steps=ten", "key 'train.steps': Input should be a valid integer"),
        ("train.steps=0", "key 'train.steps': Input should be greater than 0, got 0"),
        (
            "data.on_bad_row=ignore",
            "key 'data.on_bad_row': Input should be 'fail' or 'skip', got 'ignore'",
        ),
        ("rollout", "write key=value"),
        ("run_dir.x=1", "'run_dir' is not a group of keys"),
    ],
)
def test_wrong_overrides_are_named(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(minimal, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "overrides", "named"),
    [
        (MINIMAL, ["seed=1", "trian.steps=3"], "override 'trian.steps=3'"),
        (MINIMAL, ["train={steps: -3}"], "override 'train={steps: -3}'"),
        (MINIMAL, ["train.num_workers=99"], "override 'train.num_workers=99'"),
        (MINIMAL, ["rewards.accuracy=0", "rewards.format=0"], "override 'rewards.accuracy=0', 'r"),
        (MINIMAL + "train: {stepz: 3}\n", ["seed=1"], "FILE"),
        (MINIMAL + "train: {steps: 0}\n", ["train.num_workers=2", "seed=1"], "FILE"),
        ("run_dir: x\n", ["model.path=a/b", "seed=1"], "FILE"),
        ("run_dir: x\n", ["modle.path=a/b"], "override 'modle.path=a/b'"),
        (MINIMAL + "train: {steps: 0}\n", ["train.steps=-1"], "override 'train.steps=-1'"),
    ],
)
def test_a_mistake_is_named_with_the_file_or_the_override_that_holds_it(
    minimal: Path, text: str, overrides: list[str], named: str
) -> None:
    minimal.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(minimal, overrides)
    assert str(caught.value).startswith(named.replace("FILE", f"{minimal}: "))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"run_dir: [", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"- a\n- b\n", "expected keys and values at the top level, found list"),
        (b"run_dir: x\nmodel: {path: a/b}\n", "key 'data' is missing"),
        (b"data: {train: a}\ndata: {eval: {}}\n", "the key 'data' is there twice"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: is a folder; name the YAML file"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "none.yaml")


def test_every_key_has_a_default_but_three() -> None:
    required = [name for name, field in Config.model_fields.items() if field.is_required()]
    assert required == ["run_dir", "model", "data"]


def test_paths_in_a_file_are_relative_to_it_and_those_of_the_command_line_to_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "shared/base.yaml").write_text(
        "data: {train: a.parquet, eval: {one: ../b.parquet, made: 'module.sub:function'}}\n"
        "prompts: {templates: words.yaml}\n"
    )
    (tmp_path / "mine/run.yaml").write_text(
        "extends: ../shared/base.yaml\nrun_dir: runs/x\nmodel: {path: model, adapter: old}\n"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = load_config("../mine/run.yaml")
    assert config.run_dir == str(tmp_path / "mine/runs/x")
    assert config.model.path == str(tmp_path / "mine/model")
    assert config.model.adapter == str(tmp_path / "mine/old")
    assert config.data.train == str(tmp_path / "shared/a.parquet")
    made = "module.sub:function"
    assert config.data.eval == {"one": str(tmp_path / "b.parquet"), "made": made}
    assert config.prompts.templates == str(tmp_path / "shared/words.yaml")
    overrides = ["data.train=c.parquet", "data.eval={two: d.parquet}", "run_dir=~/r"]
    config = load_config("../mine/run.yaml", [*overrides, "model.path=owner/name"])
    assert config.data.train == str(tmp_path / "here/c.parquet")
    assert config.data.eval == {"two": str(tmp_path / "here/d.parquet")}
    assert config.run_dir == str(Path("~/r").expanduser())
    assert config.model.path == "owner/name", "a Hub id"
    (tmp_path / "mine/kept.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "mine/kept.yaml") == config
    with pytest.raises(UserError, match=f"^{tmp_path}/here/none.yaml: no such file"):
        load_config("none.yaml")


def test_a_recipe_extends_another_and_replaces_rewards_whole(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        MINIMAL + "rewards: {format: 0.2, accuracy: 1}\ntrain: {steps: 7}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\nrun_dir: runs/y\ntrain: {learning_rate: 0.5}\n"
        "rewards: {reasoning: {weight: 1}}\n"
    )
    config = load_config(tmp_path / "mine.yaml", ["rewards.judge=0.25"])
    assert config.run_dir == str(tmp_path / "runs/y")
    assert (config.train.steps, config.train.learning_rate) == (7, 0.5)
    assert {name: reward.weight for name, reward in config.rewards.items()} == {
        "reasoning": 1.0,
        "judge": 0.25,
    }
    assert load_config(
        tmp_path / "mine.yaml", ["rewards.reasoning=null", "rewards.x=1"]
    ).rewards.keys() == {"x"}
    # It would be taken for a part of the other file's rewards.
    text = (tmp_path / "mine.yaml").read_text().replace("{reasoning:", "{judge: null, reasoning:")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"rewards\.judge: null takes nothing out here.*base\.yaml"):
        load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: missing.yaml\n", "missing.yaml: no such file"),
        ("extends: [a]\n", "key 'extends': expected the path of a YAML file, got ['a']"),
        ("extends: mine.yaml\n", "mine.yaml: extends itself"),
        (MINIMAL + "judge: {backend: openai}\n", "judge.url is needed with judge.backend=openai"),
        (MINIMAL + "judge: {backend: openai, url: 'http://x/v1'}\n", "judge.model is needed"),
        (MINIMAL + "rewards: {accuracy: {wieght: 1}}\n", "did you mean 'rewards.accuracy.weight'?"),
        (MINIMAL + "rewards: {accuracy: -1}\n", "greater than or equal to 0"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "mine.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_of_one_reward_is_added_to_the_others(minimal: Path) -> None:
    weights = {
        name: reward.weight
        for name, reward in load_config(minimal, ["rewards.judge=0.5"]).rewards.items()
    }
    assert weights == {"format": 0.2, "accuracy": 1.0, "judge": 0.5}
    gated = load_config(
        minimal, ["rewards.accuracy.gate=format", "rewards.format.options={partial: true}"]
    ).rewards
    assert (gated["accuracy"].weight, gated["accuracy"].gate) == (1.0, "format")
    assert (gated["format"].weight, gated["format"].options) == (0.2, {"partial": True})
    assert load_config(minimal, ["prompts.train.short=1"]).prompts.train == {
        "plain": 1.0,
        "short": 1.0,
    }
    assert load_config(minimal, ["prompts.train={short: 1}"]).prompts.train == {"short": 1.0}


@pytest.mark.parametrize("override", ["rewards={}", "rewards={accuracy: 0, format: 0}"])
def test_a_run_with_nothing_to_learn_is_refused(minimal: Path, override: str) -> None:
    with pytest.raises(UserError, match="rewards: at least one needs a weight above 0"):
        load_config(minimal, [override])
    assert load_config(minimal, [override, "method=sft"]).method == "sft"


@pytest.fixture(scope="module")
def configuration_page() -> ModuleType:
    place = FOLDER.parent / "setup" / "configuration_page.py"
    spec = importlib.util.spec_from_file_location("configuration_page", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_all_keys_is_current(configuration_page: ModuleType) -> None:
    assert configuration_page.PAGE.read_text() == configuration_page.page(), "run `make docs`"


def test_the_page_of_all_keys_has_every_key_with_what_it_means(
    configuration_page: ModuleType,
) -> None:
    rows = re.findall(r"^\| `(.+?)` \| .* \| (.*) \|$", configuration_page.page(), re.MULTILINE)
    told = {key for key, _ in rows}
    groups = {
        key for key in known_keys(Config, [""]) if any(one.startswith(f"{key}.") for one in told)
    }
    assert set(known_keys(Config, [""])) - groups <= told
    assert not [key for key, meaning in rows if not meaning]
