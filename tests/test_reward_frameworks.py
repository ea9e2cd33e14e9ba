"""The reward adapters, called as each framework documents it; `frameworks/` has the frameworks."""

import asyncio
import doctest
import functools
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.responses import LOOSE, RIGHT, SCORES, WRONG, talk

from tpru_verl.reward_fns import areal, easyr1, easyr1_legacy, ms_swift, openrlhf, slime, trl, verifiers
from tpru_verl.reward_fns import verl as verl_adapter
from tpru_verl.reward_fns._rows import after_prompt, said, without_end

ADAPTERS = ("areal", "easyr1", "easyr1_legacy", "ms_swift", "openrlhf", "slime", "trl", "verifiers", "verl")
FOLDER = Path(trl.__file__).parent


def sample(response: str, label: str | None, **metadata: object) -> SimpleNamespace:
    return SimpleNamespace(response=response, label=label, metadata=metadata)


def trace(content: str, **fields: object) -> SimpleNamespace:
    message = {"role": "assistant", "content": content, **fields}
    reply = SimpleNamespace(content=content, model_dump=lambda: message)
    return SimpleNamespace(assistant_messages=[reply], last_reply=content.strip())


# One response and one answer through every adapter, called as its framework calls it.
CALLS: dict[str, Callable[[str, Any], float | None]] = {
    "verl": lambda r, a: verl_adapter.compute_score("tpru/x", r, a, {}, num_turns=2)["score"],
    "easyr1": lambda r, a: easyr1.compute_score([{"response": r, "response_length": 9, "ground_truth": a}])[
        0
    ]["overall"],
    "easyr1_single": lambda r, a: easyr1.compute_score({"response": r, "ground_truth": a})["overall"],
    "easyr1_legacy": lambda r, a: easyr1_legacy.compute_score([r], [a])[0]["overall"],
    "easyr1_legacy_single": lambda r, a: easyr1_legacy.compute_score(r, a)["overall"],
    "trl": lambda r, a: trl.tpru_reward(prompts=["?"], completions=[r], completion_ids=[[1]], answer=[a])[0],
    "trl_conversational": lambda r, a: trl.tpru_reward(
        prompts=[[{"role": "user", "content": "?"}]], completions=[talk(r)], completion_ids=[[1]], label=[a]
    )[0],
    "ms_swift": lambda r, a: ms_swift.TPRU(args=None)([r], trainer_state=None, solution=[a])[0],
    "openrlhf": lambda r, a: openrlhf.reward_func(["Question?" + r], ["Question?"], [a])["rewards"][0].item(),
    "verifiers": lambda r, a: asyncio.run(
        verifiers.tpru_reward(task={"prompt": "?", "answer": a}.items(), trace=trace(content=r))
    ),
    "verifiers_rubric": lambda r, a: verifiers.tpru_rubric_reward(completion=talk(r), answer=a, info={}),
    "slime": lambda r, a: asyncio.run(slime.tpru_reward(None, sample(r, a))),
    "slime_batch": lambda r, a: asyncio.run(slime.tpru_reward(None, [sample(r, a)]))[0],
    "areal": lambda r, a: areal.reward_fn("?", r, [1], [2], answer=a, images=[]),
    "areal_keywords": lambda r, a: areal.reward_fn(
        prompt="?", completions=r, prompt_ids=[1], completion_ids=[2], ground_truth=a
    ),
}
BY_ENVIRONMENT = [name for name in CALLS if name != "verl" and not name.startswith("easyr1")]


class TestEveryAdapter:
    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("response", SCORES)
    def test_same_response_same_reward(self, name: str, response: str) -> None:
        reward = CALLS[name](response, "B")
        assert type(reward) is float
        assert reward == SCORES[response]

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("answer", [None, "", " ", 3])
    def test_a_missing_answer_is_named(self, name: str, answer: object) -> None:
        with pytest.raises(ValueError, match=r"found (.*None.*|' *'|3), expected") as error:
            CALLS[name](RIGHT, answer)
        assert re.search(r"\b(answer|solution|ground_truths?|labels?)\b", str(error.value))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", BY_ENVIRONMENT)
    def test_preset_of_the_environment(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TPRU_PRESET", "paper")
        assert CALLS[name](RIGHT, "B") == pytest.approx(0.92)
        monkeypatch.setenv("TPRU_PRESET", "x")
        with pytest.raises(ValueError, match="preset: found 'x'"):
            CALLS[name](RIGHT, "B")

    def test_preset_as_an_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TPRU_PRESET", "x")
        rows = [{"response": RIGHT, "ground_truth": "B"}]
        assert easyr1.compute_score(rows, preset="paper")[0]["overall"] == pytest.approx(0.92)
        assert easyr1_legacy.compute_score([RIGHT], ["B"], preset="paper")[0]["overall"] == pytest.approx(
            0.92
        )
        ours = functools.partial(trl.tpru_reward, preset="paper")
        assert ours(completions=[RIGHT], answer=["B"]) == pytest.approx([0.92])
        assert functools.partial(areal.reward_fn, preset="tpru")("", RIGHT, [], [], answer="B") == 1.0

    @pytest.mark.parametrize("name", BY_ENVIRONMENT)
    def test_penalties_of_the_environment(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TPRU_NGRAM", "1")
        again = "<think>" + "so " * 8 + "</think><answer>B</answer>"
        assert CALLS[name](again, "B") == 1 - 43 / 64  # three of nine words are distinct
        monkeypatch.setenv("TPRU_NGRAM", "few")
        with pytest.raises(ValueError, match="TPRU_NGRAM: found 'few', expected a whole number"):
            CALLS[name](RIGHT, "B")

    def test_penalties_as_arguments_count_tokens_where_they_are_known(self) -> None:
        tokens, kept = list(range(10)), {"max_length": 10, "ngram": None}
        rewards = [
            easyr1.compute_score({"response": RIGHT, "ground_truth": "B", "response_length": 10}, **kept)[
                "overall"
            ],
            areal.reward_fn("?", RIGHT, [], tokens, answer="B", **kept),
            trl.tpru_reward([RIGHT], completion_ids=[tokens], answer=["B"], **kept)[0],
            # Characters, and far more than ten.
            easyr1_legacy.compute_score(RIGHT, "B", **kept)["overall"],
            verl_adapter.compute_score("", RIGHT, "B", **kept)["score"],
        ]
        assert rewards == [0.0] * 5
        enough = {"max_length": 20, "ngram": None}
        assert areal.reward_fn("?", RIGHT, [], tokens, answer="B", **enough) == 1.0
        assert trl.tpru_reward([RIGHT], completion_ids=[tokens], answer=["B"], **enough) == [1.0]
        one = SimpleNamespace(response=RIGHT, label="B", metadata={}, response_length=10)
        assert asyncio.run(slime.tpru_reward(None, one)) == 1.0

    @pytest.mark.parametrize("name", ADAPTERS)
    def test_its_example_runs(self, name: str) -> None:
        module = importlib.import_module(f"tpru_verl.reward_fns.{name}")
        assert doctest.testmod(module).failed == 0
        assert ">>>" in (module.__doc__ or "")

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize(
        "answer", ["<answer> B </answer>", "\u7b54\u6848\uff1aB", "(b)", "It moves.\nThe answer is B."]
    )
    def test_a_right_answer_is_read_as_a_response_is(self, name: str, answer: str) -> None:
        assert {response: CALLS[name](response, answer) for response in SCORES} == SCORES

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("answer", ["3", "dog", "B or C", "<answer>A</answer><answer>B</answer>"])
    def test_a_right_answer_that_nothing_can_match_is_named(self, name: str, answer: str) -> None:
        with pytest.raises(ValueError, match=rf"found '{answer[:3]}.*expected a letter or an order") as error:
            CALLS[name](RIGHT, answer)
        assert re.search(r"\b(answer|solution|ground_truths?|labels?): found", str(error.value))

    @pytest.mark.parametrize("name", BY_ENVIRONMENT)
    def test_a_template_that_opened_the_reasoning(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = RIGHT.removeprefix("<think>")
        assert CALLS[name](begun, "B") == 0.875
        monkeypatch.setenv("TPRU_OPENED_THINK", "1")
        assert CALLS[name](begun, "B") == CALLS[name](RIGHT, "B") == 1.0
        monkeypatch.setenv("TPRU_OPENED_THINK", "yes")
        with pytest.raises(ValueError, match="TPRU_OPENED_THINK: found 'yes', expected 0 or 1"):
            CALLS[name](begun, "B")

    def test_a_template_that_opened_the_reasoning_is_told_by_row_prompt_or_argument(self) -> None:
        begun, prompt = RIGHT.removeprefix("<think>"), "Which?<|im_end|>\n<|im_start|>assistant\n<think>\n"
        one = SimpleNamespace(prompt=prompt, response=begun, label="B", metadata={})
        inputs = {"response": begun, "ground_truth": "B"}
        rewards = [
            verl_adapter.compute_score("", begun, "B", {"opened_think": True})["score"],
            verl_adapter.compute_score("", begun, "B", {}, opened_think=True)["score"],
            easyr1.compute_score(inputs, opened_think=True)["overall"],
            easyr1_legacy.compute_score(begun, "B", opened_think=True)["overall"],
            trl.tpru_reward([begun], opened_think=True, answer=["B"])[0],
            trl.tpru_reward([begun], prompts=[prompt], answer=["B"])[0],
            areal.reward_fn(prompt, begun, [], [], answer="B"),
            openrlhf.reward_func([prompt + begun], [prompt], ["B"])["rewards"][0].item(),
            asyncio.run(slime.tpru_reward(None, one)),
        ]
        assert rewards == [1.0] * len(rewards)
        assert verl_adapter.compute_score("", begun, "B", {"opened_think": False})["score"] == 0.875

    def test_none_imports_a_framework(self) -> None:
        heavy = {"torch", "verl", "vllm", "ray", "transformers", "datasets", "trl", "swift", "openrlhf"}
        heavy |= {"verifiers", "slime", "areal"}
        modules = ", ".join(f"tpru_verl.reward_fns.{name}" for name in ADAPTERS)
        code = f"import sys, {modules}; print(*({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""

    @pytest.mark.parametrize("name", ADAPTERS)
    def test_loads_as_a_file(self, name: str) -> None:
        """EasyR1, OpenRLHF and ms-swift load a path, under a name of their own."""
        spec = importlib.util.spec_from_file_location("reward_module", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


class TestRows:
    def test_missing_columns_are_listed(self) -> None:
        with pytest.raises(
            ValueError, match=r"row 0 of the batch: found prompts, answr, expected .* answer or "
        ):
            trl.tpru_reward(prompts=["?"], completions=[RIGHT], answr=["B"])
        with pytest.raises(ValueError, match=r"row 1 of the batch: found answer \(None\), expected"):
            trl.tpru_reward(completions=[RIGHT, RIGHT], answer=["B", None])
        with pytest.raises(ValueError, match="answer: found 1 values, expected 2"):
            trl.tpru_reward(completions=[RIGHT, RIGHT], answer=["B"])
        with pytest.raises(ValueError, match="ground_truths: found 1 for 2"):
            easyr1_legacy.compute_score([RIGHT, RIGHT], ["B"])
        with pytest.raises(ValueError, match="row 1 of the batch, ground_truth: found None"):
            easyr1.compute_score([{"response": RIGHT, "ground_truth": "B"}, {"response": RIGHT}])
        with pytest.raises(ValueError, match="completion: found None"):
            trl.tpru_reward(completions=[None], answer=["B"])

    def test_mixed_data_sets(self) -> None:
        """Concatenated data sets fill each other's columns with None."""
        rewards = trl.tpru_reward(completions=[RIGHT, RIGHT], answer=["B", None], solution=[None, "A"])
        assert rewards == [1.0, 0.125]

    @pytest.mark.parametrize("column", ["extra_info", "info"])
    def test_options_and_task_of_our_rows(self, column: str) -> None:
        text = "<think>x</think><answer>a red ball</answer>"
        options = {"A": "x", "B": "a red ball", "C": None}
        info: Any = {column: {"options": options}}
        infos: Any = {column: [{"options": options}]}
        assert trl.tpru_reward(completions=[text], answer=["B"]) == [0.125]
        assert trl.tpru_reward(completions=[text], answer=["B"], **infos) == [1.0]
        assert trl.tpru_reward(completions=[text], answer=["B"], options=[options]) == [1.0]
        assert areal.reward_fn("", text, [], [], answer="B", **info) == 1.0
        assert asyncio.run(slime.tpru_reward(None, sample(text, "B", options=options))) == 1.0
        assert verifiers.tpru_rubric_reward(talk(text), "B", {"options": options}) == 1.0
        task = {"answer": "B", "options": options}
        assert asyncio.run(verifiers.tpru_reward(task.items(), trace(content=text))) == 1.0

    def test_metrics_are_logged(self) -> None:
        logged: dict[str, float] = {}
        trl.tpru_reward(completions=[RIGHT, LOOSE], answer=["B", "B"], log_metric=logged.__setitem__)
        assert logged == {"tpru/accuracy": 1.0, "tpru/format": 0.5}

    def test_no_completions(self) -> None:
        assert trl.tpru_reward(completions=[], answer=[], log_metric=lambda *_: None) == []
        assert easyr1.compute_score([]) == []
        assert asyncio.run(slime.tpru_reward(None, [])) == []

    def test_openrlhf_logs_tensors(self) -> None:
        result = openrlhf.reward_func(["Q?" + RIGHT, "Q?" + LOOSE], ["Q?", "Q?"], ["B", "B"])
        logs = result["extra_logs"]
        assert set(result) == {"rewards", "scores", "extra_logs"}
        assert {name: values.tolist() for name, values in logs.items()} == {
            "accuracy": [1.0, 1.0],
            "format": [1.0, 0.0],
            "partial": [1.0, 1.0],
        }

    def test_rubric_does_not_take_it_for_a_group(self) -> None:
        plural = {"states", "prompts", "completions", "answers", "tasks", "infos"}
        assert not plural & set(inspect.signature(verifiers.tpru_rubric_reward).parameters)


class TestMsSwiftPlugin:
    def test_registers_and_leaves_the_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rewards: Any = ModuleType("swift.rewards")
        rewards.orms = {}
        monkeypatch.setitem(sys.modules, "swift", ModuleType("swift"))
        monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
        path = list(sys.path)
        monkeypatch.setattr(sys, "path", [str(FOLDER), *path])
        spec = importlib.util.spec_from_file_location("_swift_external", FOLDER / "ms_swift.py")
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert rewards.orms["tpru"](args=None)([RIGHT], solution=["B"]) == [1.0]
        assert sys.path == path


class TestSaid:
    def test_the_last_message_of_the_assistant(self) -> None:
        tool = {"role": "tool", "content": "<answer>A</answer>"}
        assert said([*talk("first"), tool, *talk("last"), tool]) == "last"
        assert said([tool]) == said([]) == ""
        assert said([{"role": "assistant", "content": None}]) == ""

    def test_blocks(self) -> None:
        blocks = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
        assert said([{"role": "assistant", "content": blocks}]) == "ab"

    def test_reasoning_in_a_field_of_its_own(self) -> None:
        message = {"role": "assistant", "reasoning_content": "x", "content": "<answer>B</answer>"}
        assert said([message]) == RIGHT
        one = trace("<answer>B</answer>", reasoning_content="x")
        assert asyncio.run(verifiers.tpru_reward({"answer": "B"}.items(), one)) == 1.0
        one.last_reply = WRONG  # what the root agent says, not the last of all messages
        assert asyncio.run(verifiers.tpru_reward({"answer": "B"}.items(), one)) == 0.125


class TestWithoutEnd:
    @pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n<|endoftext|>", "</s>", " <eos>\n"])
    def test_tokens_that_end_a_turn(self, end: str) -> None:
        assert without_end(RIGHT + end).rstrip() == RIGHT

    @pytest.mark.parametrize("text", ["", "a\n", "<|im_end|> a", "a <|image_pad|>", " \n"])
    def test_other_text_stays_as_it_is(self, text: str) -> None:
        assert without_end(text) == text

    @pytest.mark.parametrize("text", [" " * 10**6, "<|im_end|>" * 10**5, "<" * 10**6, " <eos>" * 10**5])
    def test_linear_time(self, text: str) -> None:
        start = time.process_time()
        without_end(text)
        assert time.process_time() - start < 1


CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
words = st.text("abAB 12\n", max_size=20)


class TestAfterPrompt:
    @given(words, words)
    def test_plain(self, prompt: str, response: str) -> None:
        assert after_prompt(prompt + response, prompt) == response

    @given(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=3), words)
    def test_images_became_tokens(self, turns: list[list[str]], response: str) -> None:
        """In a query each image is as many tokens as it has patches."""
        prompt = "".join(CHAT.format(IMAGE.join(turn)) for turn in turns)
        query = prompt.replace("<|image_pad|>", "<|image_pad|>" * 9) + response
        assert after_prompt(query, prompt) == response

    def test_a_response_that_repeats_the_prompt(self) -> None:
        prompt = CHAT.format(IMAGE + "Which?")
        query = prompt.replace("<|image_pad|>", "<|image_pad|>" * 9)
        again = "<|im_start|>assistant\n<answer>B</answer>"
        assert after_prompt(query + again, prompt) == again

    def test_cut_from_the_left(self) -> None:
        prompt = CHAT.format("words " * 99 + "Which?")
        assert after_prompt(prompt[50:] + RIGHT, prompt) == RIGHT

    def test_another_prompt_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"queries: found .*, expected the prompt"):
            after_prompt("something else", CHAT.format("Which?"))
