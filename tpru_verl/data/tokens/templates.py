"""Facts about a model's chat template that the reward depends on."""

from __future__ import annotations

from typing import Protocol


class ChatTemplate(Protocol):
    """A processor or tokenizer of transformers."""

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, add_generation_prompt: bool, tokenize: bool, **kwargs
    ) -> str | list[str]: ...


def opens_think(template: ChatTemplate, **kwargs: object) -> bool:
    """Whether the chat template ends every prompt with `<think>`, so that a response begins inside of it.

    `kwargs` go to the chat template, as `data.apply_chat_template_kwargs` do in a run; with
    `enable_thinking=False` many templates close the tag again. Raises the errors of the chat template.
    """
    text = template.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Which comes first?"}]}],
        add_generation_prompt=True,
        tokenize=False,
        **kwargs,
    )
    return (text if isinstance(text, str) else text[0]).rstrip().endswith("<think>")
