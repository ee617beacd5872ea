"""An untrained Qwen2-VL of about 2 M parameters with tokenizer, chat template and image processor
of its own. It is transformers' code, so the folder loads with `from_pretrained` and in vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from rarl.tiny.phantoms import WORLD

SPECIAL_TOKENS: list[str] = WORLD["special_tokens"]
VOCABULARY = 640
MIN_PIXELS, MAX_PIXELS = 56 * 56, 112 * 112
IMAGE_SIZE = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
CHAT_TEMPLATE = TEMPLATE.read_text(encoding="utf-8").removesuffix("\n")


def train_tokenizer(texts: Iterable[str]) -> Qwen2TokenizerFast:
    """A byte-level BPE of at most `VOCABULARY` entries: any text can be encoded, the world's own
    words briefly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    entries = VOCABULARY - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=entries, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    end, padding = "<|im_end|>", "<|endoftext|>"
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token=end,
        pad_token=padding,
        unk_token=padding,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (end, padding)],
        model_max_length=2048,
    )


def make_processor(tokenizer: Qwen2TokenizerFast) -> Qwen2VLProcessor:
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=IMAGE_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=IMAGE_SIZE),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: Qwen2TokenizerFast) -> Qwen2VLConfig:
    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    ends = {
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    return Qwen2VLConfig(
        text_config={"vocab_size": len(tokenizer), **WORLD["text_config"], **ends},
        vision_config=WORLD["vision_config"],
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def make_model(config: Qwen2VLConfig, seed: int) -> Qwen2VLForConditionalGeneration:
    """Random weights, float32."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model
