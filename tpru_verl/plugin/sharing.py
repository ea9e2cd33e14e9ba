"""Patches that carry the images of a prompt once for all its samples. docs/patches.md lists all patches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin.hooks import replace, require

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

    The patch adds a call for all samples of a prompt, which `plugin/agent_loop.py` uses. With `final_only`
    the server's event loop wakes once a request and not once a token. The asynchronous trainers cannot use
    it, because their pause counts a request as admitted at its first output.
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
        final_only: bool,
        seeds: Sequence[int] = (),
        **prompt: object,
    ):
        params = {**sampling_params, "detokenize": False}  # veRL reads token ids alone
        if final_only:
            params["output_kind"] = RequestOutputKind.FINAL_ONLY
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
