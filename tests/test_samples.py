"""The record of a reply: what is written is what is read, whatever is missing."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from rarl.samples import Sample, flatten, from_table, read_samples, to_table, write_samples
from rarl.schema import Example, Prompt, Rollout, Score, Verdict

TEXT = some.text(max_size=20)
MAYBE = some.none() | TEXT
SHARE = some.floats(0, 1)
EXAMPLES = some.builds(
    Example,
    id=TEXT,
    images=some.just(()),
    image_id=TEXT,
    question=TEXT,
    answer=TEXT,
    answer_type=some.sampled_from(["closed", "choice", "open"]),
    options=some.none() | some.lists(TEXT, min_size=1, max_size=3).map(tuple),
    rationale=MAYBE,
    facts=some.none() | some.lists(TEXT, min_size=1, max_size=3).map(tuple),
    other_facts=some.none() | some.lists(some.lists(TEXT, max_size=2).map(tuple)).map(tuple),
    modality=MAYBE,
    organ=MAYBE,
    dataset=TEXT,
    split=TEXT,
)
ROLLOUTS = some.builds(
    Rollout,
    text=TEXT,
    completion_token_ids=some.lists(some.integers(0, 150_000), max_size=5),
    finish_reason=some.sampled_from(["stop", "length"]),
    adapter_version=some.integers(-1, 9),
    prompt_token_ids=some.just([]),
    sampler_logprobs=some.just([]),
)
VERDICTS = some.builds(
    Verdict,
    status=some.sampled_from(["scored", "unparsable", "unreachable"]),
    correctness=some.none() | some.floats(0, 3),
    factuality=some.none() | SHARE,
    completeness=some.none() | SHARE,
    relevance=some.none() | SHARE,
    reason=TEXT,
)
# Rewards have the same names in all samples of a file, as those of a run have.
SCORES = some.builds(
    Score,
    total=some.floats(-5, 5),
    rewards=some.fixed_dictionaries({"accuracy": some.none() | SHARE, "my.module:f": SHARE}),
)
SAMPLES = some.builds(
    Sample,
    example=EXAMPLES,
    prompt=some.builds(Prompt, TEXT, TEXT, some.sampled_from(["think", "structured", "answer"])),
    rollout=ROLLOUTS,
    number=some.integers(0, 7),
    rederived=MAYBE,
    verdict=some.none() | VERDICTS,
    score=SCORES,
    advantage=some.none() | some.floats(-3, 3),
    seconds=some.none() | some.floats(0, 9),
    prepared=some.none(),
)


@settings(deadline=None)
@given(some.lists(SAMPLES, max_size=4))
def test_a_table_gives_back_what_was_put_in(samples: list[Sample]) -> None:
    assert from_table(to_table(samples)) == samples


def sample(**parts: object) -> Sample:
    example = Example("q1", (b"pixels",), "i1", "Is it?", "yes", "closed")
    rollout = Rollout("yes", [5, 6], "stop", 3, [1, 2, 3], [-0.5, -0.1])
    return Sample(example, Prompt("…", "plain/0", "think"), rollout, **parts)  # type: ignore[arg-type]


def test_what_is_kept_in_memory_alone_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    write_samples(path, [sample()], {"step": 7})
    table = pq.read_table(path)
    assert table.column("step").to_pylist() == [7]
    assert table.column("example/id").to_pylist() == ["q1"]
    assert not {"example/images", "rollout/prompt_token_ids", "rollout/sampler_logprobs"} & set(
        table.column_names
    )
    [read] = read_samples(path)
    assert (read.example.images, read.rollout.prompt_token_ids) == ((), [])
    assert read.rollout.completion_token_ids == [5, 6]
    assert (read.score, read.verdict, read.advantage) == (None, None, None)
    with pytest.raises(ValueError, match="the reply to 'q1' has not been scored"):
        _ = read.rewards


def test_columns_follow_the_fields_of_the_record() -> None:
    names = to_table([sample(score=Score(1.0, {"accuracy": 1.0}))]).column_names
    kept = [one.name for one in fields(Example) if one.name not in ("images", "extra")]
    assert names[: len(kept)] == [f"example/{name}" for name in kept]
    assert "score/rewards/accuracy" in names


def test_further_columns_of_a_table_are_columns_of_their_own(tmp_path: Path) -> None:
    """Each data set of a mixture has its own further columns."""
    example = Example("q1", (), "i1", "Is it?", "yes", "closed", extra={"ward": "B", "age": None})
    other = replace(example, extra={"site": "north"})
    samples = [replace(sample(), example=one) for one in (example, other)]
    write_samples(tmp_path / "a.parquet", samples)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column("example/extra/ward").to_pylist() == ["B", None]
    read = read_samples(tmp_path / "a.parquet")
    assert [one.example.extra.get("site") for one in read] == [None, "north"]
    assert [one.example.extra.get("ward") for one in read] == ["B", None]


def test_a_file_from_before_a_field_was_there_is_read() -> None:
    table = to_table([sample()]).drop_columns(["number", "example/organ", "verdict/reason"])
    [read] = from_table(table)
    assert (read.number, read.example.organ, read.verdict) == (0, None, None)


def test_files_of_one_folder_may_lack_a_type(tmp_path: Path) -> None:
    """A folder is read as one data set although a column is all null in one file."""
    write_samples(tmp_path / "a.parquet", [sample()])
    write_samples(tmp_path / "b.parquet", [sample(rederived="no", advantage=0.5)])
    table = pq.read_table(tmp_path)
    assert table.schema.field("rederived").type == pa.string()
    assert table.column("advantage").to_pylist() == [None, 0.5]


def test_flatten_keeps_the_order_of_groups() -> None:
    first, second, third = sample(number=0), sample(number=1), sample(number=2)
    assert flatten([[first, second], [], [third]]) == [first, second, third]
