"""Patches that keep the samples of a prompt together and carry its images once (docs/patches.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin.hooks import replace, require
from tpru_verl.plugin.records import groups_of

if TYPE_CHECKING:
    import torch


def one_copy_in_transfer(serial_utils: ModuleType) -> None:
    """TransferQueue copies a tensor into a message once for every sample that refers to it.

    The patch copies it once for all of them. The samples of a prompt then share its pixel values in the
    message, in the storage, which keeps the message, and in the worker that fetches it.
    """
    from contextvars import ContextVar

    encoder = serial_utils.MsgpackEncoder
    require(encoder, "encode", "_encode_regular_tensor")
    encode, encode_tensor = encoder.encode, encoder._encode_regular_tensor
    encoded: ContextVar[dict[tuple[object, ...], object]] = ContextVar("encoded")

    def encode_sharing(self, obj: object):
        token = encoded.set({})
        try:
            return encode(self, obj)
        finally:
            encoded.reset(token)

    def _encode_regular_tensor(self, obj: torch.Tensor):
        # Any other tensor is copied first, and the address of the copy may belong to another tensor later.
        if obj.device.type != "cpu" or not obj.is_contiguous():
            return encode_tensor(self, obj)
        known, place = encoded.get(), (obj.data_ptr(), obj.dtype, obj.shape)
        if place not in known:
            known[place] = encode_tensor(self, obj)
        return known[place]

    encoder.encode = encode_sharing
    encoder._encode_regular_tensor = _encode_regular_tensor


def generate_group(vllm_async_server: ModuleType) -> None:
    """Stock veRL calls its vLLM server once a sample, and each call carries the images of the prompt.

    The patch adds a call for all samples of a prompt, which `plugin/agent_loop.py` uses. The server's event
    loop wakes once a request and not once a token. The asynchronous trainers cannot use it: their pause
    counts a request as admitted at its first output, and only veRL's client resumes what they abort.
    """
    from vllm.sampling_params import RequestOutputKind

    server = vllm_async_server.vLLMHttpServer
    require(server, "generate")

    async def generate_group(
        self,
        n: int,
        *,
        request_id: str,
        sampling_params: dict,
        seeds: Sequence[int] = (),
        **prompt: object,
    ):
        # veRL reads token ids alone.
        params = {**sampling_params, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        each = [{**params, "seed": seed} for seed in seeds] or [dict(params) for _ in range(n)]
        samples = (
            self.generate(request_id=f"{request_id}-{i}", sampling_params=one, **prompt)
            for i, one in enumerate(each)
        )
        with _processed_once(prompt.get("image_data")):
            return await asyncio.gather(*samples)

    server.generate_group = generate_group


class _Prompt:
    """The samples that vLLM's server is asked for together, by their list of images."""

    def __init__(self, images: object) -> None:
        self.images = images
        self.inputs: Any = None


_groups: dict[int, _Prompt] = {}


@contextmanager
def _processed_once(images: object) -> Iterator[None]:
    if images is None:
        yield
        return
    _groups[id(images)] = _Prompt(images)
    try:
        yield
    finally:
        del _groups[id(images)]


def process_group_once(preprocess: ModuleType) -> None:
    """vLLM's front end (0.28) hashes, converts and places the images of each request, cached or not.

    The patch does so for the first sample of a group of `generate_group`; the others take its inputs. vLLM's
    cache of images is asked for each request as before, because the engine's own cache follows its order.
    """
    from vllm.multimodal.cache import BaseMultiModalProcessorCache

    preprocessor = preprocess.InputPreprocessor
    require(preprocessor, "preprocess")
    require(preprocess.BaseRenderer, "mm_processor_cache")
    require(BaseMultiModalProcessorCache, "is_cached_item", "get_and_update_item")
    original = preprocessor.preprocess

    def shared_preprocess(self: Any, prompt: Any, *args: object, **kwargs: object):
        data = prompt.get("multi_modal_data") if isinstance(prompt, dict) else None
        group = _groups.get(id(data.get("image"))) if data else None
        if group is None:
            return original(self, prompt, *args, **kwargs)
        again = _again(group.inputs, self.renderer.mm_processor_cache) if group.inputs else None
        if again is None:
            group.inputs = again = original(self, prompt, *args, **kwargs)
        return again

    replace(preprocessor, "preprocess", shared_preprocess)


def _again(inputs: Any, cache: Any) -> Any:
    """The inputs of an equal request after the first one; None where the cache has lost an image since."""
    if cache is None:
        return inputs
    hashes = inputs["mm_hashes"]
    if not all(cache.is_cached_item(one) for every in hashes.values() for one in every):
        return None
    items = {
        modality: [cache.get_and_update_item(None, one)[0] for one in every]
        for modality, every in hashes.items()
    }
    return {**inputs, "mm_kwargs": type(inputs["mm_kwargs"])(items)}


def groups_on_one_rank(trainer_base: ModuleType) -> None:
    """Stock veRL deals the samples of a batch to the ranks one by one, so a prompt's samples are on several.

    Each of these ranks then fetches the prompt's images, encodes them and computes the prompt. The patch
    deals prompts: as many to each rank, with sums as equal as whole prompts allow. Where that cannot be,
    because prompts have different numbers of samples or do not divide by the ranks, samples are dealt as
    before.
    """
    trainer = trainer_base.PPOTrainer
    require(trainer, "_balance_batch")
    require(trainer_base, "get_seqlen_balanced_partitions")
    balance, partitions_of = trainer._balance_batch, trainer_base.get_seqlen_balanced_partitions
    keys: list[str] = []  # of the batch that is being dealt

    def _balance_batch(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        keys[:] = batch.keys
        return balance(self, batch, *args, **kwargs)

    def get_seqlen_balanced_partitions(
        seqlen_list: Sequence[int], k_partitions: int, equal_size: bool
    ) -> list[list[int]]:
        # veRL may have added samples to the batch, which belong to no prompt.
        groups = [*groups_of(keys).values()] if len(keys) == len(seqlen_list) else []
        equal = equal_size and len({len(group) for group in groups}) == 1
        if not equal or len(groups) % k_partitions:
            return partitions_of(seqlen_list, k_partitions=k_partitions, equal_size=equal_size)
        work = [sum(int(seqlen_list[sample]) for sample in group) for group in groups]
        parts = partitions_of(work, k_partitions=k_partitions, equal_size=True)
        return [[sample for group in part for sample in groups[group]] for part in parts]

    replace(trainer, "_balance_batch", _balance_batch)
    replace(trainer_base, "get_seqlen_balanced_partitions", get_seqlen_balanced_partitions)
