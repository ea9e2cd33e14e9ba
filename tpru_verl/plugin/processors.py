"""What the agent loop needs of transformers' processors: quick checks, visible errors, training features."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import BatchFeature

if TYPE_CHECKING:
    from transformers import ProcessorMixin

logger = logging.getLogger("tpru_verl")

T = TypeVar("T")


def check_lists_of_ids(processor: ProcessorMixin) -> None:
    """Let the processor count the image tokens of a prompt in a list.

    transformers 5.10 compares tensors of one element each, which takes longer than preparing the images.
    """
    check = getattr(processor, "_check_special_mm_tokens", None)
    if check is None:
        logger.warning(
            "tpru plugin: %s has no _check_special_mm_tokens, so it may count image tokens slowly",
            type(processor).__name__,
        )
        return

    def check_lists(text: list[str], text_inputs: BatchFeature, modalities: list[str]) -> None:
        ids = [torch.as_tensor(ids).tolist() for ids in text_inputs["input_ids"]]
        check(text, BatchFeature({"input_ids": ids}), modalities)

    processor._check_special_mm_tokens = check_lists


def training_features(features: dict[str, object], images: int) -> dict[str, torch.Tensor]:
    """The part of the processor's output that stock veRL keeps for training; none without images.

    Raises ValueError where images have no `image_grid_thw`: the update would not see them.
    """
    kept = {key: torch.as_tensor(value) for key, value in features.items() if key != "attention_mask"}
    grid = kept.get("image_grid_thw")
    if grid is None:
        if images:
            raise ValueError(f"found {images} images without image_grid_thw in the processor's output")
        return {}
    kept["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    return kept


class Executor(ThreadPoolExecutor):
    """An executor whose functions raise RuntimeError in the place of StopIteration.

    Python 3.11's asyncio cannot store a StopIteration in a future, so that who awaits it waits for ever.
    transformers' processors raise one for a text with more image tokens than images.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return super().submit(_without_stop_iteration, fn, *args, **kwargs)


def _without_stop_iteration(function: Callable[..., T], *args: object, **kwargs: object) -> T:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        raise RuntimeError(
            "StopIteration: a processor raises it for a text with more image or video tokens than images"
        ) from error
