r"""The functions that the tasks of `tpru eval export lmms-eval` call; written for lmms-eval 0.7.3.

    tpru eval export lmms-eval tasks --bench tpru-test,lego-puzzles
    lmms-eval --include_path tasks --tasks tpru_test,tpru_lego_puzzles --model openai \
        --model_args model=NAME,base_url=http://localhost:8000/v1,api_key=none --log_samples --output_path out
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from tpru_verl.eval.engines.base import parts_of
from tpru_verl.eval.harnesses.rows import verdict_of
from tpru_verl.sample import IMAGE_TAG

Doc = Mapping[str, Any]


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    """The pictures, already within the pixel bounds."""
    return [Image.open(io.BytesIO(image)).convert("RGB") for image in doc["images"]]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: object = None) -> str:
    """The prompt with its tags, for models that take no messages and put all pictures first."""
    return str(doc["prompt"])


def doc_to_messages(doc: Doc, lmms_eval_specific_kwargs: object = None) -> list[dict[str, Any]]:
    """Text and pictures in their order."""
    pictures = iter(doc_to_visual(doc))
    content = [
        {"type": "image", "url": next(pictures)} if part == IMAGE_TAG else {"type": "text", "text": part}
        for part in parts_of(str(doc["prompt"]))
    ]
    return [{"role": "user", "content": content}]


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """The verdict of `tpru eval` on the one response."""
    found = verdict_of(doc, str(results[0]))
    return {"accuracy": float(found.correct), "unparsed": float(found.parsed is None)}
