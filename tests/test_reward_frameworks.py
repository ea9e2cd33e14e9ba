"""The reward adapters: first under each framework's documented call, then through the framework itself.

The classes at the end are there where their framework is. Their pins exclude each other, and veRL 0.9.1
does not start beside TRL 1.16 (it looks there for a class that is gone), so each needs an environment of its
own, with this project, hypothesis, pytest and pytest-timeout:

    pip install trl==1.16.0          pytest tests/test_reward_frameworks.py -k TestTRL
    pip install ms-swift             pytest tests/test_reward_frameworks.py -k TestMsSwift
    pip install openrlhf             pytest tests/test_reward_frameworks.py -k TestOpenRLHF
    pip install verifiers            pytest tests/test_reward_frameworks.py -k TestVerifiers
    pip install verifiers==0.1.9     pytest tests/test_reward_frameworks.py -k TestRubric
    pip install areal                pytest tests/test_reward_frameworks.py -k TestAReaL
    a checkout of slime              pytest tests/test_reward_frameworks.py -k TestSlime
    a checkout of EasyR1             pytest tests/test_reward_frameworks.py -k TestEasyR1

`--no-deps` and the few packages that are then missed do, without a GPU: only reward code is imported.
"""

import asyncio
import functools
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

from tpru_verl.reward_fns import areal, easyr1, easyr1_legacy, ms_swift, openrlhf, slime, trl, verifiers
from tpru_verl.reward_fns import verl as verl_adapter
from tpru_verl.reward_fns._rows import after_prompt, said, without_end

RIGHT, WRONG = "<think>x</think><answer>B</answer>", "<think>x</think><answer>A</answer>"
LOOSE = "The answer: <answer>B</answer>"  # right, in the wrong form
NONSENSE = "I see a dog."
SCORES = {RIGHT: 1.0, WRONG: 0.125, LOOSE: 0.875, NONSENSE: 0.0}
ADAPTERS = ("areal", "easyr1", "easyr1_legacy", "ms_swift", "openrlhf", "slime", "trl", "verifiers", "verl")
FOLDER = Path(trl.__file__).parent


def installed(module: str, file: str = "__init__.py") -> bool:
    """Whether a package is there and holds `file`; nothing is imported."""
    spec = importlib.util.find_spec(module)
    return spec is not None and any((Path(p) / file).exists() for p in spec.submodule_search_locations or ())


def talk(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


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
        with pytest.raises(ValueError, match="ground_truth: found None"):
            easyr1.compute_score([{"response": RIGHT}])
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


# ---------------------------------------------------------------- through the frameworks themselves


class TestTRL:
    __test__ = installed("trl", "trainer/grpo_trainer.py")

    @pytest.mark.parametrize("conversational", [False, True])
    def test_trains_two_steps(self, conversational: bool, tmp_path: Path) -> None:
        """A random model whose vocabulary is a few whole answers; the logged rewards are those earned."""
        from datasets import Dataset
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
        from trl import GRPOConfig, GRPOTrainer  # pyright: ignore

        vocabulary = {text: i for i, text in enumerate(["<pad>", "<eos>", "Which?", *SCORES])}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")),
            pad_token="<pad>",
            eos_token="<eos>",
            chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
        )
        set_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=None,
            )
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        earned: list[float] = []

        def spy(completions: list[Any], answer: list[str], **_: object) -> list[float | None]:
            texts = [c[0]["content"] if conversational else c for c in completions]
            assert set(answer) == {"B"}
            earned.extend(SCORES.get(text, 0.0) for text in texts)
            return [None] * len(texts)

        prompt: Any = [{"role": "user", "content": "Which?"}] if conversational else "Which?"
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=[functools.partial(trl.tpru_reward, preset="tpru"), spy],
            train_dataset=Dataset.from_list([{"prompt": prompt, "answer": "B"}] * 8),
            args=GRPOConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=8,
                num_generations=8,
                max_completion_length=1,
                max_steps=2,
                learning_rate=0.1,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
            ),
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "rewards/tpru_reward/mean" in entry]
        means = [sum(earned[i : i + 8]) / 8 for i in (0, 8)]
        assert [entry["rewards/tpru_reward/mean"] for entry in logs] == means
        assert max(means) > 0
        assert all(0 <= entry["tpru/accuracy"] <= 1 for entry in logs)
        assert any(not value.equal(before[name]) for name, value in model.state_dict().items())


class TestMsSwift:
    __test__ = installed("swift", "rewards/orm.py")

    def test_plugin_reward_and_trl(self) -> None:
        """The loader of `--external_plugins`, then the function that the trainer scores with."""
        import torch
        from swift.arguments import BaseArguments  # pyright: ignore[reportMissingImports]
        from swift.rewards import orms  # pyright: ignore[reportMissingImports]
        from swift.rl_core.data import GRPOSample  # pyright: ignore[reportMissingImports]
        from swift.rl_core.grpo_algorithm import score_completions  # pyright: ignore[reportMissingImports]
        from swift.rlhf_trainers.utils import resolve_reward_funcs  # pyright: ignore[reportMissingImports]

        arguments = SimpleNamespace(external_plugins=[ms_swift.__file__], custom_register_path=[])
        BaseArguments._import_external_plugins(arguments)
        assert str(FOLDER) not in sys.path
        functions, names = resolve_reward_funcs(["tpru"])
        assert names == ["TPRU"]
        assert isinstance(functions[0], orms["tpru"])
        samples = [GRPOSample.from_row({"messages": talk(text), "solution": "B"}) for text in (RIGHT, WRONG)]
        scores = score_completions(samples, functions, [None], False, torch.device("cpu"))
        assert scores.tolist() == [[1.0], [0.125]]


class TestOpenRLHF:
    __test__ = installed("openrlhf", "utils/agent.py")

    @pytest.mark.parametrize("max_length", [64, 9], ids=["whole prompt", "cut prompt"])
    def test_executor(self, checkpoint: Path, max_length: int) -> None:
        """The executor that loads `--reward.remote_url`, with an engine that says what we tell it."""
        from openrlhf.utils.agent import SingleTurnAgentExecutor  # pyright: ignore[reportMissingImports]
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        executor = SingleTurnAgentExecutor(openrlhf.__file__)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Which?"}], tokenize=False, add_generation_prompt=True
        )

        async def reply(text: str) -> dict[str, Any]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]

            async def generate(*_: object, **__: object) -> SimpleNamespace:
                output = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
                return SimpleNamespace(outputs=[output])

            parameters = SimpleNamespace(max_tokens=1, logprobs=None)
            engine = SimpleNamespace(generate=generate)
            return await executor.execute(prompt, "B", parameters, max_length, tokenizer, engine)

        for text, score in SCORES.items():
            result = asyncio.run(reply(text))
            assert float(result["reward"]) == float(result["scores"]) == score
            assert set(result["extra_logs"]) == {"accuracy", "format", "partial"}


class TestVerifiers:
    __test__ = installed("verifiers", "v1/task.py")

    def test_task_scores_a_trace(self) -> None:
        import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
        from verifiers.v1.configs.task import TaskConfig  # pyright: ignore[reportMissingImports]
        from verifiers.v1.task import WireTaskData  # pyright: ignore[reportMissingImports]

        config = TaskConfig.model_validate(
            {"rewards": {"tpru": {"fn": "tpru_verl.reward_fns.verifiers:tpru_reward", "weight": 0.5}}}
        )

        async def score(**message: object) -> float:
            task = vf.Task(WireTaskData.model_validate({"idx": 0, "prompt": "?", "answer": "B"}), config)
            record = traced(task, message)
            await task.score(record)
            assert list(record.rewards) == ["tpru"]
            return record.reward

        for text, expected in SCORES.items():
            assert asyncio.run(score(content=text)) == expected / 2
        assert asyncio.run(score(content="<answer>B</answer>", reasoning_content="x")) == 0.5


def traced(task: Any, message: dict[str, object]) -> Any:
    """A trace of verifiers' own that holds one sampled message."""
    from verifiers.v1.configs.agent import AgentConfig  # pyright: ignore[reportMissingImports]
    from verifiers.v1.graph import MessageNode  # pyright: ignore[reportMissingImports]
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask  # pyright: ignore[reportMissingImports]
    from verifiers.v1.types import AssistantMessage  # pyright: ignore[reportMissingImports]

    node = MessageNode(message=AssistantMessage(**message), sampled=True)  # pyright: ignore
    agent = AgentInfo(config=AgentConfig())
    return Trace(task=TraceTask(type="Task", data=task.data), agent=agent, nodes=[node])


class TestRubric:
    __test__ = installed("verifiers", "rubrics/rubric.py")

    def test_environment_generates_and_scores(self) -> None:
        """Rollouts of a single-turn environment with a client that says what we tell it."""
        import verifiers as vf  # pyright: ignore[reportMissingImports]
        from datasets import Dataset
        from openai.types.chat import ChatCompletion

        async def score(text: str) -> float:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            reply = {"id": "1", "created": 0, "model": "m", "object": "chat.completion", "choices": [choice]}

            async def create(**_: object) -> ChatCompletion:
                return ChatCompletion.model_validate(reply)

            completions = SimpleNamespace(create=create)
            client: Any = SimpleNamespace(chat=SimpleNamespace(completions=completions), base_url="")
            rubric = vf.Rubric(funcs=[verifiers.tpru_rubric_reward])
            dataset = Dataset.from_list([{"question": "Which?", "answer": "B"}])
            environment = vf.SingleTurnEnv(dataset=dataset, eval_dataset=dataset, rubric=rubric)
            results = await environment.evaluate(client, "m", num_examples=1, rollouts_per_example=2)
            (reward, again) = results["reward"]
            assert reward == again
            return reward

        for text, expected in SCORES.items():
            assert asyncio.run(score(text)) == expected


class TestSlime:
    __test__ = installed("slime", "rollout/rm_hub/__init__.py")

    def test_reward_hub(self) -> None:
        """The two functions through which slime's rollouts ask for rewards."""
        from slime.rollout.rm_hub import async_rm, batched_async_rm  # pyright: ignore[reportMissingImports]
        from slime.utils.types import Sample  # pyright: ignore[reportMissingImports]

        args = SimpleNamespace(custom_rm_path="tpru_verl.reward_fns.slime.tpru_reward")
        samples = [Sample(response=text + "<|im_end|>", label="B") for text in SCORES]
        assert asyncio.run(batched_async_rm(args, samples)) == list(SCORES.values())
        assert asyncio.run(async_rm(args, samples[0])) == 1.0


class TestAReaL:
    __test__ = installed("areal", "workflow/rlvr.py")

    def test_workflow_scores_a_response(self, checkpoint: Path) -> None:
        """`RLVRWorkflow` from an import string: decoding, process pool and all."""
        from areal.api import AsyncRewardWrapper  # pyright: ignore[reportMissingImports]
        from areal.utils.dynamic_import import import_from_string  # pyright: ignore[reportMissingImports]
        from areal.workflow.rlvr import RLVRWorkflow  # pyright: ignore[reportMissingImports]
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        workflow: Any = RLVRWorkflow.__new__(RLVRWorkflow)
        workflow.tokenizer = tokenizer
        function = import_from_string("tpru_verl.reward_fns.areal.reward_fn")
        workflow.async_reward_fn = AsyncRewardWrapper(function, max_workers=1)

        async def score(text: str) -> float:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            response = SimpleNamespace(input_tokens=[1], output_tokens=ids)
            row = {"messages": [], "answer": "B", "extra_info": {"scene": "x"}}
            return await workflow._compute_rewards(response, "Which?", row)

        for text, expected in SCORES.items():
            assert asyncio.run(score(text)) == expected


class TestEasyR1:
    """Any version: the manager's name and what it passes changed, the configuration did not."""

    __test__ = installed("verl", "workers/reward/function.py")

    @pytest.mark.parametrize("kind", ["batch", "sequential"])
    def test_reward_manager(self, checkpoint: Path, kind: str) -> None:
        import torch
        from transformers import AutoTokenizer
        from verl.protocol import DataProto
        from verl.workers.reward import function  # pyright: ignore
        from verl.workers.reward.config import RewardConfig  # pyright: ignore

        old = "RewardInput" not in vars(function)
        adapter = easyr1_legacy if old else easyr1
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        path = f"{adapter.__file__}:compute_score"
        config = RewardConfig(reward_function=path, reward_function_kwargs={"preset": "tpru"})
        config.post_init()
        if hasattr(function, "AutoRewardManager"):
            manager = function.AutoRewardManager(config, tokenizer)
            assert manager.reward_type == "batch"
            manager.reward_type = kind
        else:
            manager = getattr(function, f"{kind.title()}FunctionRewardManager")(config, tokenizer)
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SCORES]
        longest = max(map(len, encoded))
        ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in encoded]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in encoded]
        data = DataProto.from_dict(
            {"responses": torch.tensor(ids), "response_mask": torch.tensor(mask)},
            {"ground_truth": ["B"] * len(encoded)},
        )
        rewards, metrics = manager.compute_reward(data)
        assert rewards.sum(-1).tolist() == list(SCORES.values()) == metrics["overall"]
        assert metrics["accuracy"] == [1.0, 0.0, 1.0, 0.0]
        last = [len(row) - 1 for row in encoded]
        assert rewards[range(len(last)), last].tolist() == list(SCORES.values())
