"""Our group rollout writes to TransferQueue what stock veRL's worker writes, field by field."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl")
from tensordict import NonTensorStack, TensorDict
from transformers import AutoTokenizer
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.tensordict_utils import get_tensordict
from verl.workers.rollout.replica import TokenOutput

from tpru_verl import recipes
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.plugin.agent_loop import TPRUAgentLoopWorker, _StockWorker

N = 3
ANSWERS = ["<think>x</think><answer>A</answer>", "B and then some more words"]


class Remote:
    """Stands for a Ray actor's method: `.remote(...)` gives something to await."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *args: object, **kwargs: object) -> asyncio.Future:
        return asyncio.ensure_future(self._function(*args, **kwargs))


class FakeServer:
    """Both calls of the vLLM server, with fixed responses; counts what crosses the wire."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.images = tokenizer, 0
        self.biased: set[int] = set()
        self.generate_group = Remote(self._group)

    def sample(self, prompt_ids: list[int]) -> TokenOutput:
        # By the prompt, not by turn: stock veRL's samples of a prompt arrive in no fixed order.
        ids = self.tokenizer(ANSWERS[len(prompt_ids) % 2], add_special_tokens=False)["input_ids"]
        ids.append(self.tokenizer.eos_token_id)
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

    def __init__(self, config: Any) -> None:
        from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

        worker = RewardLoopWorker(config)
        self.compute_score = Remote(worker.compute_score)
        self.compute_score_batch = Remote(worker.compute_score_batch)


@pytest.fixture
def rollout(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a worker class on two prompts; returns the fields that it wrote by key, tags, and the server."""
    write_parquet(make_rows(2, seed=3), tmp_path / "rows.parquet")
    config = recipes.compose(
        "tpru_tiny_cpu",
        [
            f"data.train_files={tmp_path / 'rows.parquet'}",
            f"data.val_files={tmp_path / 'rows.parquet'}",
            f"actor_rollout_ref.model.path={checkpoint}",
            f"actor_rollout_ref.rollout.n={N}",
        ],
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    async def run(worker_class: type) -> tuple[dict[str, dict], dict[str, dict], FakeServer]:
        fields, tags = {}, {}

        async def put_many(keys: list[str], fields: TensorDict, tags: list[dict], partition_id: str) -> None:
            for i, (key, tag) in enumerate(zip(keys, tags, strict=True)):
                written[key] = {name: _value(column, i) for name, column in fields.items()}
                all_tags[key] = tag

        async def put(key: str, partition_id: str, tag: dict) -> None:
            all_tags[key] = tag

        written, all_tags = fields, tags
        for name, function in {
            "init": lambda: None,
            "async_kv_put": put,
            "async_kv_batch_put": put_many,
        }.items():
            monkeypatch.setattr(f"transfer_queue.{name}", function)
        server = FakeServer(tokenizer)
        worker = worker_class(config, FakeClient(server), None, [FakeRewardWorker(config)])
        dataset = create_rl_dataset(
            config.data.train_files, config.data, worker.tokenizer, worker.processor, is_train=True
        )
        batch = get_tensordict(
            collate_fn([dataset[i] for i in range(2)]), non_tensor_dict={"global_steps": 7}
        )
        for i in range(2):
            prompt = {key: _value(value, i) for key, value in batch.items()}
            prompt |= {"uid": f"row{i}", "agent_name": "single_turn_agent"}
            trajectory = {"step": 7, "sample_index": i, "rollout_n": 0, "validate": False}
            await worker._run_prompt(prompt, {"temperature": 1.0}, trajectory)
        return fields, tags, server

    return lambda worker_class: asyncio.run(run(worker_class))


def _value(column: Any, i: int) -> Any:
    """Row i of a column, taken out as veRL's worker takes it."""
    if isinstance(column, torch.Tensor):
        return column.unbind()[i]
    return column[i].data if isinstance(column, NonTensorStack) else column.data


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def test_group_rollout_writes_what_stock_verl_writes(rollout: Callable) -> None:
    ours, our_tags, our_server = rollout(TPRUAgentLoopWorker)
    stock, stock_tags, stock_server = rollout(_StockWorker)

    assert our_tags == stock_tags
    assert ours.keys() == stock.keys()
    assert len(ours) == 2 * N
    # Timings differ, and stock veRL keeps the decoded pictures of every trajectory in `raw_prompt`.
    for key, row in stock.items():
        assert set(ours[key]) | {"mm_processor_kwargs", "mm_processor_output"} >= set(row)
        for name in row.keys() & ours[key].keys() - {"metrics", "raw_prompt"}:
            assert same(ours[key][name], row[name]), (key, name, ours[key][name], row[name])
    assert stock_server.images == N * our_server.images


def test_tokens_that_stand_for_images_are_never_sampled(rollout: Callable) -> None:
    _, _, server = rollout(TPRUAgentLoopWorker)
    assert server.tokenizer.convert_ids_to_tokens(sorted(server.biased)) == ["<|image_pad|>", "<|video_pad|>"]


def test_each_image_is_processed_once_for_a_prompt(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2_5_VLProcessor

    calls: list[int] = []
    process = Qwen2_5_VLProcessor.__call__

    def counted(self: Qwen2_5_VLProcessor, images: Any = None, **kwargs: Any) -> Any:
        calls.append(1 if images else 0)
        return process(self, images=images, **kwargs)

    monkeypatch.setattr(Qwen2_5_VLProcessor, "__call__", counted)
    rollout(TPRUAgentLoopWorker)
    ours = sum(calls)
    calls.clear()
    rollout(_StockWorker)
    # Both count the data set's own look at its two rows; a prompt costs us 1, stock veRL 3 a trajectory.
    assert sum(calls) - ours == 2 * (3 * N - 1)


def test_a_failed_prompt_is_marked_and_leaves_the_others_alone(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: object, *_: object, **__: object) -> None:
        raise ValueError("no pictures today")

    monkeypatch.setattr(TPRUAgentLoopWorker, "_generate", fail)
    fields, tags, _ = rollout(TPRUAgentLoopWorker)
    assert fields == {}
    assert {key: tag["status"] for key, tag in tags.items()} == {"row0": "failure", "row1": "failure"}
