"""Patches that carry the images of a prompt once for all its samples. docs/patches.md lists all patches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from tpru_verl.plugin.hooks import require

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
        return await asyncio.gather(*samples)

    server.generate_group = generate_group
