"""What of the sampler needs no engine: text from tokens, and which samplers a worker asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import decode


@given(st.data())
@settings(max_examples=150)
def test_text_made_once_is_what_vllm_makes_token_by_token(processor: Any, data: Any) -> None:
    """Of real text that was cut and mixed, with special tokens and characters in pieces."""
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    tokenizer = processor.tokenizer
    words = [
        "<think>",
        "a left",
        " pleural effusion",
        "é",
        "胸",
        "🫁",
        "\ufffd",
        " ",
        "\n\n",
        " .",
        "n't",
    ]
    parts = data.draw(st.lists(st.sampled_from(words + tokenizer.all_special_tokens), max_size=12))
    ids = tokenizer("".join(parts)).input_ids
    cut = data.draw(st.integers(0, len(ids)))
    ids = [*ids[:cut], *data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=6))]
    prompt = tokenizer("Is it normal?").input_ids
    options = SamplingParams()
    request: Any = SimpleNamespace(
        sampling_params=options, prompt_token_ids=prompt, request_id="0", prompt_embeds=None
    )
    own = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for token in ids:
        own.update([token], stop_terminated=False)
    assert decode(tokenizer, ids) == own.get_next_output_text(finished=True, delta=False)


class Handle:
    """Stands for an actor that nobody asks."""


def test_which_samplers_a_worker_asks_and_loads() -> None:
    a, b, c = Handle(), Handle(), Handle()
    three = SamplerPool([a, b, c], timeout=1)
    assert [three.share(rank, 2).actors for rank in range(2)] == [[a, c], [b]]
    assert [three.share(rank, 3).loading for rank in range(3)] == [[a], [b], [c]]
    two = SamplerPool([a, b], timeout=1)
    views = [two.share(rank, 5) for rank in range(5)]
    assert [view.actors for view in views] == [[a], [b], [a], [b], [a]]
    assert [view.loading for view in views] == [[a], [b], [], [], []]
    assert [view.sharing for view in views] == [3, 2, 3, 2, 3]
    assert {three.share(rank, 2).sharing for rank in range(2)} == {three.sharing} == {1}
    views[3].lost.append(b)
    assert views[3].actors == [a], "whose own are all lost uses another that lives"
    assert views[2].publish(1, {"x": np.zeros(3, np.float32)}, {}) == 12
    assert views[2].published is not None
    assert "arguments" not in vars(views[2].published), "nothing went to the object store"
