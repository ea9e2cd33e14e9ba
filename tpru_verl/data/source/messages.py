"""Conversations: prompts in veRL's form."""

from __future__ import annotations

from collections.abc import Mapping

from tpru_verl.data.source.cells import short
from tpru_verl.sample import IMAGE_TAG

ROLES = ("system", "developer", "user", "assistant", "tool")  # a chat template writes any role as it comes
_MEDIA = ("image", "images", "image_url", "video", "videos", "video_url", "audio", "audio_url")


def read_messages(prompt: object) -> tuple[list[dict[str, str]], str]:
    """A conversation in veRL's form, each content as text, and why it cannot be read ("" where it can).

    A content is text or a list of parts: text parts are joined, a part of the type "image" becomes an
    `<image>` tag. A picture that a part itself names is refused, because only the row's own are opened.
    """
    if not isinstance(prompt, list) or not prompt:
        return [], f"found {short(prompt)}, expected a list of messages"
    messages: list[dict[str, str]] = []
    for i, message in enumerate(prompt):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or not isinstance(role, str):
            return [], f"found {short(message)} as message {i}, expected an object with role and content"
        if role not in ROLES:
            return [], f"found the role {short(role)} in message {i}, expected one of {', '.join(ROLES)}"
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        try:
            _refuse_media(message)
            messages.append({"role": role, "content": "".join(_text_of(part) for part in parts)})
        except ValueError as error:
            return [], f"{error} in message {i}"
    if messages[-1]["role"] == "assistant":
        return [], "found an answer of the assistant as the last message, expected the user's question"
    return messages, ""


def _refuse_media(fields: Mapping[str, object]) -> None:
    """Raise ValueError for a message or a part of text that brings a picture or a video of its own."""
    for name in _MEDIA:
        if fields.get(name):
            raise ValueError(
                f"found {short(name)}: {short(fields[name])}, expected text (only the row's own images are "
                "opened)"
            )


def _text_of(part: object) -> str:
    """Raises ValueError for what is neither text nor the place of a picture."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        _refuse_media(part)
        return part["text"]
    if isinstance(part, Mapping) and kind == "image":
        others = {name: part[name] for name in part if name not in ("type", "text") and part[name]}
        if not others:
            return IMAGE_TAG
        name, value = next(iter(others.items()))
        raise ValueError(
            f"found an image part with {short(name)}: {short(value)}, expected the type alone (only the "
            "row's own images are opened)"
        )
    raise ValueError(f"found {short(part)}, expected text or parts of the types text and image")
