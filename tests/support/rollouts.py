"""veRL's agent-loop worker without Ray, vLLM and TransferQueue: what it prepares, and what it writes."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from tensordict import NonTensorStack, TensorDict
from transformers import AutoTokenizer
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.tensordict_utils import get_tensordict
from verl.workers.rollout.replica import TokenOutput

ANSWERS = ["<think>x</think><answer>A</answer>", "B and then some more words"]


class Remote:
    """Stands for a Ray actor's method: `.remote(...)` gives something to await.

    `apart`: what it is given is a copy, as in another process.
    """

    def __init__(self, function: Callable[..., Any], *, apart: bool = False) -> None:
        self._function, self._apart = function, apart

    def remote(self, *args: object, **kwargs: object) -> asyncio.Future:
        if self._apart:
            args = pickle.loads(pickle.dumps(args))
        return asyncio.ensure_future(self._function(*args, **kwargs))


class FakeServer:
    """Both calls of the vLLM server, with fixed responses; counts what crosses the wire."""

    def __init__(self, tokenizer: Any) -> None:
        self.images = 0
        self.tokenizer = tokenizer
        self._answers = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS]
        self.biased: set[int] = set()
        self.generate_group = Remote(self._group)

    def sample(self, prompt_ids: list[int]) -> TokenOutput:
        # By the prompt, not by turn: stock veRL's samples of a prompt arrive in no fixed order.
        ids = [*self._answers[len(prompt_ids) % 2], self.tokenizer.eos_token_id]
        return TokenOutput(
            token_ids=ids,
            log_probs=[-0.1 * i for i in range(len(ids))],
            stop_reason="completed",
            extra_fields={"global_steps": 7},
        )

    async def _group(
        self, n: int, *, prompt_ids: list[int], image_data: list, sampling_params: dict, **_: object
    ) -> list[TokenOutput]:
        self.images += len(image_data)
        self.biased |= sampling_params["logit_bias"].keys()
        return [self.sample(prompt_ids) for _ in range(n)]


class FakeClient:
    """Stands for veRL's LLMServerClient."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def generate(self, *, prompt_ids: list[int], image_data: list, **_: object) -> TokenOutput:
        self.server.images += len(image_data)
        sample = self.server.sample(prompt_ids)
        sample.extra_fields.update(min_global_steps=7, max_global_steps=7)
        return sample

    async def _acquire_server(self, request_id: str, **_: object) -> tuple[str, FakeServer]:
        return "server", self.server

    def _release_server(self, *_: object, **__: object) -> None:
        pass


class FakeRewardWorker:
    """veRL's reward worker, but for Ray: one row, or a batch of them."""

    def __init__(self, config: Any, *, apart: bool) -> None:
        from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

        worker = RewardLoopWorker(config)
        self.compute_score = Remote(worker.compute_score, apart=apart)
        self.compute_score_batch = Remote(worker.compute_score_batch, apart=apart)


class Rollouts:
    """Runs a class of workers on the first rows of a recipe's data; keeps what it wrote, by key."""

    def __init__(self, config: Any, worker_class: type, rows: int = 2, *, keep: bool = True) -> None:
        self._keep = keep
        self.fields: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, dict[str, Any]] = {}
        self.told: list[dict[str, str]] = []  # of each call that wrote tags alone: their status, by key
        self.server = FakeServer(AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path))
        self._loop = asyncio.new_event_loop()  # veRL's worker belongs to the loop that it was made in

        async def make() -> Any:
            return worker_class(config, FakeClient(self.server), None, [FakeRewardWorker(config, apart=keep)])

        with patch("transfer_queue.init"):
            self.worker = self._loop.run_until_complete(make())
        dataset = create_rl_dataset(
            config.data.train_files, config.data, self.worker.tokenizer, self.worker.processor, is_train=True
        )
        self._read = lambda: collate_fn([dataset[i] for i in range(rows)])
        self._rows = rows

    def _prompts(self) -> list[dict[str, Any]]:
        columns = get_tensordict(self._read(), non_tensor_dict={"global_steps": 7})
        prompts = [{key: _value(value, i) for key, value in columns.items()} for i in range(self._rows)]
        # As Ray hands them over: stock veRL's pictures are decoded then.
        return pickle.loads(pickle.dumps(prompts))

    def run(self) -> None:
        prompts = self._prompts()
        with (
            patch("transfer_queue.async_kv_put", self._put),
            patch("transfer_queue.async_kv_batch_put", self._put_many),
        ):
            self._loop.run_until_complete(self._run(prompts))

    async def _run(self, prompts: list[dict[str, Any]]) -> None:
        started = []
        for i, prompt in enumerate(prompts):
            named = {**prompt, "uid": f"row{i}", "agent_name": "single_turn_agent"}
            trajectory = {"step": 7, "sample_index": i, "rollout_n": 0, "validate": False}
            started.append(self.worker._run_prompt(named, {"temperature": 1.0}, trajectory))
        await asyncio.gather(*started)

    async def _put(self, key: str, partition_id: str, tag: dict) -> None:
        self.tags[key] = tag

    async def _put_many(
        self, keys: list[str], partition_id: str, tags: list[dict], fields: TensorDict | None = None
    ) -> None:
        if not self._keep:
            return
        self.tags.update(zip(keys, tags, strict=True))
        if fields is None:
            self.told.append(dict(zip(keys, (tag["status"] for tag in tags), strict=True)))
            return
        for i, key in enumerate(keys):
            self.fields[key] = {name: _value(column, i) for name, column in fields.items()}


def _value(column: Any, i: int) -> Any:
    """Row i of a column, taken out as veRL's worker takes it."""
    if isinstance(column, torch.Tensor):
        return column.unbind()[i]
    return column[i].data if isinstance(column, NonTensorStack) else column.data


def same(a: Any, b: Any) -> bool:
    """Whether two values of a field are equal, and of one type."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
