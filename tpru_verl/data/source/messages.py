"""Conversations: prompts in veRL's form, and questions with answers of OpenAI, ShareGPT and LLaVA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from tpru_verl.data.source.cells import short
from tpru_verl.sample import IMAGE_TAG

ROLES = ("system", "developer", "user", "assistant", "tool")  # a chat template writes any role as it comes
_MEDIA = ("image", "images", "image_url", "video", "videos", "video_url", "audio", "audio_url")
# Who speaks, in ShareGPT's and LLaVA's words.
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}


class Chat(NamedTuple):
    """A question with its answer, read from one conversation."""

    messages: list[dict[str, str]]  # up to the answer
    answer: str | None  # what the assistant says at the end; None where it says nothing
    images: list[object]  # cells that the messages themselves bring, in their order
    unread: str  # why it cannot be read, "found ..., expected ..."; else ""

    @property
    def is_plain(self) -> bool:
        """Whether there is a question alone, to which a prompt template may be applied."""
        return [message["role"] for message in self.messages] == ["user"]


def read_chat(cell: object) -> Chat:
    """A conversation of one question: messages of `role` and `content`, or of `from` and `value`.

    A content is text or a list of parts, an image part becomes an `<image>` tag. `cell` may be the JSON text
    of such a list. Raises nothing.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return Chat([], None, [], f"found {short(cell)}, expected a list of messages")
    images: list[object] = []
    turns = cell if isinstance(cell, list) else []
    try:
        read = [_turn(turn, images) if isinstance(turn, Mapping) else turn for turn in turns]
    except ValueError as error:
        return Chat([], None, [], str(error))
    said = [turn for turn in read if isinstance(turn, Mapping) and turn["role"] == "assistant"]
    if len(said) > 1:
        found = f"found {len(said)} answers of the assistant"
        return Chat([], None, [], f"{found}, expected one (a row for each question)")
    answer = None
    if said and read[-1] is said[0]:
        spoken, unread = read_messages([{**read.pop(), "role": "user"}])
        if unread or IMAGE_TAG in spoken[0]["content"]:
            return Chat([], None, [], unread or "found a picture in the answer, expected text")
        answer = spoken[0]["content"]
    messages, unread = read_messages(read if turns else cell)
    return Chat(messages, answer, images, unread)


def _turn(turn: Mapping[str, object], images: list[object]) -> dict[str, object]:
    """The message in veRL's form; its pictures are added to `images`. Raises ValueError."""
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):
        content = [_part(part, images) if isinstance(part, Mapping) else part for part in content]
    return {"role": _SPEAKERS.get(role, role) if isinstance(role, str) else role, "content": content}


def _part(part: Mapping[str, object], images: list[object]) -> Mapping[str, object]:
    kind = part.get("type")
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if kind not in ("image", "image_url", "input_image"):
        return part
    held = next((part[name] for name in ("image_url", "image", "url", "path") if part.get(name)), None)
    if isinstance(held, Mapping) and "url" in held:
        held = held["url"]
    if held is not None:
        images.append(held)
    return {"type": "image"}


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
