"""What makes two runs of one seed do the same: uids, the order of answers, and seeds, also on a CPU."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl")
from support.rollouts import Rollouts
from verl.trainer.ppo.v1 import replay_buffer, trainer_base

from tpru_verl import recipes
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.plugin import reproducible, sharing, vllm_process
from tpru_verl.plugin.agent_loop import TPRUAgentLoopWorker
from tpru_verl.plugin.waiting import ERROR


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reproducible.ON, "1")


def fetched(step: int, batches: int = 1) -> list[str]:
    """Uids that veRL's trainer gives the prompts of a step, two a batch."""
    rows = {"raw_prompt": np.array(["a", "b"], dtype=object)}
    trainer: Any = SimpleNamespace(
        global_steps=step, train_dataloader_it=iter([dict(rows) for _ in range(batches)])
    )
    found = [trainer_base.PPOTrainer._fetch_one_gen_batch(trainer) for _ in range(batches)]
    return [str(uid) for batch in found for uid in batch["uid"]]


def trained_on(*keys: str) -> list[str]:
    """veRL's batch of the answers that were finished in the order of `keys`."""
    buffer = replay_buffer.ReplayBuffer("sync", OmegaConf.create(), None, "drop", OmegaConf.create())
    uids = sorted({key.partition("_")[0] for key in keys})
    return buffer._materialize_batch("train", uids, {key: {} for key in keys}).keys


class TestOrder:
    def test_prompts_have_the_same_uids_in_each_run_and_after_a_resume(self, on: None) -> None:
        assert fetched(3, batches=2) == fetched(3, batches=2)
        uids = fetched(4, batches=2) + fetched(5)
        assert sorted(set(uids)) == uids

    def test_without_the_variable_they_are_drawn(self) -> None:
        assert fetched(3) != fetched(3)

    def test_answers_are_trained_on_in_the_order_of_prompts_and_samples(
        self, on: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("transfer_queue.kv_clear", lambda **_: None)
        one, other = fetched(9)
        right = [f"{uid}_{sample}_0" for uid in (one, other) for sample in (0, 2, 10)]
        assert trained_on(*reversed(right)) == right
        monkeypatch.delenv(reproducible.ON)
        assert trained_on(*reversed(right)) == right[::-1]


@pytest.fixture
def seeds(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[tuple[int, ...], list[int]]]:
    """The seeds that our agent loop gives the samples of two prompts, by prompt.

    The prompts are prepared side by side and come to the server in any order.
    """
    write_parquet(make_rows(2, seed=3), tmp_path / "rows.parquet")
    files = [f"data.{split}_files={tmp_path / 'rows.parquet'}" for split in ("train", "val")]

    def run(*overrides: str) -> dict[tuple[int, ...], list[int]]:
        config = recipes.compose(
            "tpru_tiny_cpu",
            [*files, f"actor_rollout_ref.model.path={checkpoint}", "+tpru=reproducible", *overrides],
        )
        rollouts, found = Rollouts(config, TPRUAgentLoopWorker), {}
        group = rollouts.server._group

        async def noted(n: int, *, seeds: list[int], prompt_ids: list[int], **given: Any) -> Any:
            found[tuple(prompt_ids)] = seeds
            return await group(n, prompt_ids=prompt_ids, **given)

        rollouts.server.generate_group._function = noted
        rollouts.run()
        return found

    return run


class TestSeeds:
    def test_each_answer_has_its_own_and_the_same_in_each_run(self, on: None, seeds: Callable) -> None:
        first = seeds()
        assert first == seeds()
        drawn = {seed for group in first.values() for seed in group}
        assert len(drawn) == 2 * 8
        of_another_seed = seeds("actor_rollout_ref.rollout.seed=43")
        assert drawn.isdisjoint(seed for group in of_another_seed.values() for seed in group)

    def test_without_the_variable_there_are_none(self, seeds: Callable) -> None:
        assert list(seeds().values()) == [[], []]

    def test_where_all_samples_would_have_one_seed_the_run_ends(
        self, on: None, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TPRUAgentLoopWorker, "_runs_groups", lambda self: False)
        write_parquet(make_rows(2, seed=3), tmp_path / "rows.parquet")
        files = [f"data.{split}_files={tmp_path / 'rows.parquet'}" for split in ("train", "val")]
        config = recipes.compose("tpru_tiny_cpu", [*files, f"actor_rollout_ref.model.path={checkpoint}"])
        rollouts = Rollouts(config, TPRUAgentLoopWorker)
        rollouts.run()
        assert "one seed" in rollouts.tags["row0"][ERROR]

    def test_vllm_gets_them(self) -> None:
        given: list[dict] = []

        class Server:
            async def generate(self, *, sampling_params: dict, **_: object) -> None:
                given.append(sampling_params)

            generate_group: Any

        sharing.generate_group(SimpleNamespace(vLLMHttpServer=Server))  # type: ignore[arg-type]
        call = {"request_id": "x", "sampling_params": {"top_k": -1}}
        asyncio.run(Server().generate_group(2, seeds=[5, 6], **call))
        asyncio.run(Server().generate_group(2, **call))
        assert [params.get("seed") for params in given] == [5, 6, None, None]


class Runner:
    """What vLLM's runner for a CPU does with generators; of place 1 a part of the prompt is still to come."""

    def __init__(self) -> None:
        self.generators = {place: torch.Generator().manual_seed(place) for place in (0, 1)}
        self.input_batch = SimpleNamespace(num_reqs=2, generators=self.generators)
        self.discard_request_mask = SimpleNamespace(np=np.array([False, True, False]))

    def _sample(self) -> list[float]:
        return [float(torch.rand(1, generator=generator)) for generator in self.generators.values()]

    def _bookkeeping_sync(self) -> None:
        for place in self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]:
            if generator := self.input_batch.generators.get(int(place)):
                generator.set_offset(generator.get_offset() - 4)


def test_a_prompt_in_parts_does_not_end_vllm_on_a_cpu_and_draws_what_a_whole_one_draws() -> None:
    with pytest.raises(RuntimeError, match="offset"):
        Runner()._bookkeeping_sync()
    patched = type("Patched", (Runner,), dict(vars(Runner)))
    vllm_process.own_seeds_with_chunks(SimpleNamespace(CPUModelRunner=patched))  # type: ignore[arg-type]
    runner = patched()
    first, part = runner._sample()
    runner._bookkeeping_sync()
    assert runner.generators.keys() == {0, 1}
    runner.discard_request_mask.np[:] = False
    second, whole = runner._sample()
    assert part == whole
    assert first != second


def test_vllms_own_classes_have_what_is_patched() -> None:
    pytest.importorskip("vllm")
    from vllm.model_executor.layers import batch_invariant
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    vllm_process.own_seeds_with_chunks(SimpleNamespace(CPUModelRunner=type("C", (CPUModelRunner,), {})))  # type: ignore[arg-type]
    assert callable(batch_invariant.init_batch_invariance)
