"""The columns of prepared rows as other frameworks read them: `tpru data prepare --for`.

Sources: TRL 1.16 `trl/data_utils.py` (`prepare_multimodal_messages`), ms-swift 4.6
`swift/dataset/preprocessor/core.py` (`MessagesPreprocessor`).
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from tpru_verl.data.layout import Record
from tpru_verl.sample import IMAGE_TAG

VERL, TRL, MS_SWIFT = FRAMEWORKS = ("verl", "trl", "ms-swift")

_PARTS = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
_MESSAGES_OF_PARTS = pa.list_(pa.struct([("role", pa.string()), ("content", _PARTS)]))
_OF_VERL = ("data_source", "reward_model")


def columns_for(framework: str, columns: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Those of `columns`, the ones for veRL and EasyR1, that the framework reads, by its names.

    - `trl`: `prompt` in parts, which have the places of the pictures, `images`, and the row's own columns.
      TRL puts the pictures of a prompt that is plain text in front of it.
    - `ms-swift`: `messages`, `images`, `solution`. It takes `answer` for the response of the model.
    """
    if framework == VERL:
        return dict(columns)
    if framework == TRL:
        return {name: kind for name, kind in columns.items() if name not in _OF_VERL} | {
            "prompt": _MESSAGES_OF_PARTS
        }
    names = {"prompt": "messages", "images": "images", "answer": "solution"}
    others = ("problem", *names, *_OF_VERL)
    return {new: columns[name] for name, new in names.items()} | {
        name: kind for name, kind in columns.items() if name not in others
    }


def record_for(framework: str, record: Record) -> Record:
    """A row's columns with the framework's names and forms; those that it does not read are left in."""
    if framework == VERL:
        return record
    messages = record["prompt"]
    assert isinstance(messages, list)
    if framework == TRL:
        return record | {
            "prompt": [message | {"content": _parts(message["content"])} for message in messages]
        }
    return record | {"messages": messages, "solution": record["answer"]}


def _parts(text: str) -> list[dict[str, str]]:
    """`a<image>b` as text a, an image, text b."""
    first, *others = text.split(IMAGE_TAG)
    parts = [{"type": "text", "text": first}]
    for other in others:
        parts += [{"type": "image"}, {"type": "text", "text": other}]
    return [part for part in parts if part != {"type": "text", "text": ""}]
