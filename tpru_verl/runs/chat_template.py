"""The chat template of an exported model, with the arguments that the run gave it as its defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpru_verl.files import write_json, write_text

KWARGS = "data.apply_chat_template_kwargs"


def keep_defaults(folder: Path, kwargs: Mapping[str, object]) -> list[str]:
    """Have each chat template in `folder` take `kwargs` unless a request says otherwise; a line about it.

    The recipes of Qwen3.5 train without the template's own thinking. Served with it, a model would answer in
    a way that it was not trained in. Arguments that are no plain values, such as `tools`, stay with requests.
    """
    plain = {name: value for name, value in kwargs.items() if isinstance(value, (bool, int, float, str))}
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value)} %}}{{%- endif %}}"
        for name, value in plain.items()
    )
    if not head:
        return []
    for path in [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]:
        if path.is_file():
            write_text(path, head + path.read_text(encoding="utf-8"))
    for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if isinstance(template := config.get("chat_template"), str):
            write_json(path, {**config, "chat_template": head + template})
    return [f"chat template: {json.dumps(plain)} unless a request says otherwise, as in training"]
