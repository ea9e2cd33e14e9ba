"""vLLM's front end prepares a prompt once for the group of its samples: the inputs stay the same."""

import inspect
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")
pytest.importorskip("vllm")
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl.trainer.ppo.v1 import trainer_base
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import preprocess
from vllm.renderers import renderer_from_config

from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.plugin import sharing

Preprocessor: Any = preprocess.InputPreprocessor
STOCK = Preprocessor.preprocess
if STOCK.__name__ == "shared_preprocess":  # the plugin has been at work in this process
    STOCK = STOCK.__closure__[0].cell_contents


def prompts() -> list[dict[str, Any]]:
    """Two requests for one prompt of three pictures, as veRL's server makes them: they share the list."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    images = [Image.effect_noise((56, 56), spread).convert("RGB") for spread in (10, 40, 90)]
    tokens = tokenizer("Order: " + 3 * "<|vision_start|><|image_pad|><|vision_end|>")["input_ids"]
    return [{"prompt_token_ids": tokens, "multi_modal_data": {"image": images}} for _ in range(2)]


def values(inputs: dict[str, Any]) -> tuple[Any, ...]:
    pixels = [item and item.get_data()["pixel_values"] for item in inputs["mm_kwargs"]["image"]]
    return inputs["prompt_token_ids"], inputs["mm_hashes"], inputs["mm_placeholders"], pixels


@pytest.mark.parametrize("gigabytes", [4, 0])
def test_a_group_has_the_inputs_of_requests_apart(gigabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = EngineArgs(str(CHECKPOINT), mm_processor_cache_gb=gigabytes, enforce_eager=True)
    config = args.create_engine_config()
    monkeypatch.setattr(Preprocessor, "preprocess", STOCK)
    apart, ours = (Preprocessor(config, renderer_from_config(config)) for _ in range(2))
    first, second = prompts()
    stock = [values(apart.preprocess(one)) for one in (first, second)]

    sharing.process_group_once(preprocess)
    calls: list[int] = []
    process = ours.renderer._process_multimodal
    monkeypatch.setattr(
        ours.renderer, "_process_multimodal", lambda *a, **k: calls.append(1) or process(*a, **k)
    )
    with sharing._processed_once(first["multi_modal_data"]["image"]):
        found = [values(ours.preprocess(one)) for one in (first, second)]
        assert len(calls) == 1
        if gigabytes:  # lost by the cache in between: the pixels have to come again
            ours.renderer.mm_processor_cache.clear_cache()
            assert values(ours.preprocess(second))[-1][0] is not None
    for one, other in zip(stock, found, strict=True):
        assert one[:3] == other[:3]
        for a, b in zip(one[3], other[3], strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
    assert (found[1][3][0] is None) == bool(gigabytes)


def dealt(uids: list[str], lengths: list[int], ranks: int, patched: bool = True) -> list[list[str]]:
    """The prompts' uids on each rank, as veRL's trainer deals a batch of samples."""
    names = Counter[str]()
    keys = []
    for uid in uids:
        keys.append(f"{uid}_{names[uid]}_0")
        names[uid] += 1
    batch = KVBatchMeta(keys=keys, tags=[{"seq_len": length} for length in lengths], partition_id="train")
    trainer: Any = SimpleNamespace(
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": [*range(ranks)]}),
        _get_required_batch_multiple=lambda size: size,
        tokenizer=SimpleNamespace(eos_token_id=0),
    )
    balance = trainer_base.PPOTrainer._balance_batch
    assert balance.__module__ == sharing.__name__  # this process has the plugin
    if not patched:
        balance = inspect.getclosurevars(balance).nonlocals["balance"]
    balanced = balance(trainer, batch, metrics={})
    uids = [key.rsplit("_", 2)[0] for key in balanced.keys]  # a list
    assert sorted(balanced.keys) == sorted(keys)
    each = len(uids) // ranks
    return [uids[rank * each : (rank + 1) * each] for rank in range(ranks)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_samples_of_a_prompt_are_on_one_rank(ranks: int, each: int, n: int, random: Any) -> None:
    uids = [f"p_{place}" for place in range(ranks * each) for _ in range(n)]
    random.shuffle(uids)  # as rollouts end
    parts = dealt(uids, [random.randint(1, 900) for _ in uids], ranks)
    assert [len(set(part)) for part in parts] == [each] * ranks
    assert set().union(*parts) == set(uids)


def test_ranks_get_equal_work() -> None:
    uids = [f"{place:02}" for place in range(16) for _ in range(8)]
    lengths = [(100 + 60 * int(uid)) + sample for uid, sample in zip(uids, [*range(8)] * 16, strict=True)]
    work = dict(zip(uids, lengths, strict=True))
    sums = [sum(work[uid] for uid in part) for part in dealt(uids, lengths, 4)]
    assert max(sums) < 1.05 * min(sums)


@pytest.mark.parametrize(
    ("uids", "ranks"),
    [
        ([*"aabbccddeeff"], 4),  # six prompts
        ([*"aaab"], 2),  # not as many samples of each
    ],
)
def test_where_prompts_do_not_divide_samples_are_dealt_as_before(uids: list[str], ranks: int) -> None:
    lengths = [7 * place % 11 + 1 for place in range(len(uids))]
    assert dealt(uids, lengths, ranks) == dealt(uids, lengths, ranks, patched=False)
