"""A model in this process whose chat template begins the reasoning (Qwen3.5, Qwen3-VL-Thinking)."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.eval.decide import GENERATE, GUIDED, opening_after
from tpru_verl.eval.engines.base import Request, Sampling
from tpru_verl.eval.engines.candidates import Job
from tpru_verl.eval.engines.local import Local
from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import judge

ITEM = Item("1", "Which comes next?", "B", (), {"A": "up", "B": "down"})
BEGINS = (
    "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- elif add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(CHECKPOINT, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().rstrip() + BEGINS)
    return folder


def local(model: Path, **options: object) -> Local:
    return Local(str(model), Sampling(), min_pixels=3136, max_pixels=3136, options=options)


def prompt(engine: Local, decide: str = GENERATE, opening: str = "") -> str:
    text = engine._prompt(Request("", ITEM, ITEM.problem, decide, ("A", "B"), opening))["prompt"]
    return text.rpartition("assistant\n")[2]


def said(engine: Local, text: str) -> str:
    """The reply to a request, where vLLM gives this text."""
    job = engine._job(Request("", ITEM, ITEM.problem))
    sample = SimpleNamespace(text=text, finish_reason="length", token_ids=[1])
    job.outputs[0] = SimpleNamespace(outputs=[sample], prompt_token_ids=[1])
    (found,) = job.reply().texts
    return found


def test_what_the_template_began_comes_back_with_the_response(thinking: Path) -> None:
    engine = local(thinking)
    assert prompt(engine) == "<think>\n"
    cut_off = said(engine, "It moves down.\nSo the answer is B")
    assert cut_off == "<think>It moves down.\nSo the answer is B"
    assert judge(ITEM, cut_off).parsed is None
    whole = judge(ITEM, said(engine, "It moves down.\n</think>\n<answer>B</answer>"))
    assert (whole.parsed, whole.correct, whole.format) == ("B", True, True)
    assert said(engine, "<think>twice</think><answer>B</answer>").count("<think>") == 1


def test_without_thinking(thinking: Path) -> None:
    engine = local(thinking, chat_template_kwargs={"enable_thinking": False})
    assert prompt(engine) == "<think>\n\n</think>\n\n"
    assert said(engine, "B") == "B"
    assert local(CHECKPOINT).begun == ""


@pytest.mark.parametrize(
    ("opening", "whole"),
    [
        ("", "<think>\n</think>\n\n"),
        ("<answer>", "<think>\n</think>\n\n<answer>"),
        ("B fits. <answer>", "<think>\nB fits. </think>\n\n<answer>"),
        ("B fits.</think><answer>", "<think>\nB fits.</think><answer>"),
        (opening_after("<think>It moves", cut_off=True), "<think>\nIt moves</think>\n\n<answer>"),
        (opening_after("<think>It moves</think>\n", cut_off=False), "<think>\nIt moves</think>\n<answer>"),
    ],
)
def test_an_answer_alone_stands_after_the_reasoning(thinking: Path, opening: str, whole: str) -> None:
    assert prompt(local(thinking), GUIDED, opening) == whole


def test_stored_answers_are_those_of_the_same_template(thinking: Path) -> None:
    kinds = [local(thinking), local(thinking, chat_template_kwargs={"enable_thinking": False})]
    assert len({engine.identity for engine in kinds}) == 2
    assert Job(Request("", ITEM, ""), {}, []).begun == ""


def test_kwargs_that_are_no_object(thinking: Path) -> None:
    with pytest.raises(ValueError, match="--option chat_template_kwargs: found 'x', expected an object"):
        local(thinking, chat_template_kwargs="x")
