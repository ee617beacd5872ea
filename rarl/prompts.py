"""Example → chat messages. One plain prompt that asks for thinking in tags before the answer."""

from __future__ import annotations

from typing import Any

from rarl.schema import Example

THINK_THEN_ANSWER = (
    "First describe what you see, then answer. Reply as <think>your reasoning</think><answer>your answer</answer>."
)
YES_OR_NO = "Answer yes or no."


def question_text(example: Example) -> str:
    """The question, its options on one line where it has any, and the instruction."""
    lines = [example.question]
    if example.options:
        lines.append("Options: " + ", ".join(example.options) + ".")
    elif example.answer_type == "closed" and example.answer.strip().lower() in ("yes", "no"):
        lines.append(YES_OR_NO)
    lines.append(THINK_THEN_ANSWER)
    return "\n".join(lines)


def chat_messages(example: Example) -> list[dict[str, Any]]:
    """One user turn: the image, then the text. The image itself travels beside the messages."""
    content = [{"type": "image"}, {"type": "text", "text": question_text(example)}]
    return [{"role": "user", "content": content}]


def render_prompt(processor: Any, example: Example) -> str:
    """The prompt as text with one image placeholder, through the processor's own chat template."""
    text: str = processor.apply_chat_template(chat_messages(example), add_generation_prompt=True, tokenize=False)
    return text


def target_text(thinking: str, answer: str) -> str:
    """The reply that the instruction asks for."""
    return f"<think>{thinking}</think><answer>{answer}</answer>"
