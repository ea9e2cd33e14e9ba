"""Patches of transformers' vision towers: outputs and gradients stay the same, with less work.

Stock veRL 0.9.1 concatenates the images of all sequences of a micro-batch, so the vision tower gets each
image of a prompt once for every sample. `share_images` encodes the distinct images and copies their features,
which saves time and memory for activations. The gradients of the copies add up in the one image.

Without flash-attn the towers compute attention in a Python loop over images, or windows of images. With small
pictures it takes most of a CPU's time, and a GPU waits for it (benchmarks/RESULTS.md, gpu).
`vision_tower_without_loops` makes one call for all parts of one length.
"""

from __future__ import annotations

from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from tpru_verl.models import FAMILIES
from tpru_verl.plugin.hooks import replace, require

if TYPE_CHECKING:
    import torch

# Module of transformers -> its vision tower.
TOWERS = {family.modeling: family.vision_tower for family in FAMILIES.values()}


def share_images(modeling: ModuleType) -> None:
    """Have the module's vision tower encode each distinct image of its input once."""
    tower = getattr(modeling, TOWERS[modeling.__name__])
    require(tower, "forward")
    original = tower.forward

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: object):
        found = distinct_images(hidden_states, grid_thw) if not kwargs else None
        if found is None:
            return original(self, hidden_states, grid_thw, **kwargs)
        firsts, copies = found
        sizes = grid_thw.prod(-1).tolist()
        shared = hidden_states[_rows(firsts, sizes, hidden_states.device)]
        outputs = original(self, shared, grid_thw[firsts])
        return _copied(outputs, copies, [sizes[first] for first in firsts], shared.shape[0])

    replace(tower, "forward", forward)


class Parts(NamedTuple):
    """The parts of a tower's input that attend to themselves: images, or windows of images.

    lengths: (parts, tokens of each) for each length, the shortest first.
    order: the tokens' places, sorted by the length of their part, [tokens]; None where all have one length.
    back: the inverse of `order`.
    """

    lengths: list[tuple[int, int]]
    order: torch.Tensor | None
    back: torch.Tensor | None


def vision_tower_without_loops(modeling: ModuleType) -> None:
    """Have the module's vision tower compute attention in one call for all parts of one length.

    The patch embedding, a convolution whose stride is its kernel, becomes a matrix product.
    """
    from torch.nn import Conv3d
    from torch.nn.functional import linear

    attention, patch_embed = (_only_class(modeling, name) for name in ("VisionAttention", "PatchEmbed"))
    require(modeling, "apply_rotary_pos_emb_vision")
    require(attention, "forward")
    require(patch_embed, "forward")
    looping, convolution = attention.forward, patch_embed.forward

    def attend(
        self: Any,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if position_embeddings is None or self.config._attn_implementation not in ("sdpa", "eager"):
            return looping(self, hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        query, key, value = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        query, key = modeling.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        mixed = attend_within((query, key, value), parts_of(cu_seqlens), self.scaling)
        return self.proj(mixed.flatten(1))

    def embed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if type(self.proj) is not Conv3d:  # an adapter, say
            return convolution(self, hidden_states)
        weight = self.proj.weight.flatten(1)
        return linear(hidden_states.view(-1, weight.shape[1]).to(weight.dtype), weight, self.proj.bias)

    replace(attention, "forward", attend)
    replace(patch_embed, "forward", embed)


def parts_of(cu_seqlens: torch.Tensor) -> Parts:
    """The parts between `cu_seqlens` [parts + 1].

    Reading them makes a GPU's host wait, so they are kept with the tensor: every block of a tower gets the
    same, but where a reentrant checkpoint hands out copies.
    """
    import torch

    found = getattr(cu_seqlens, "tpru_parts", None)
    if found is None:
        lengths = cu_seqlens.diff()
        sizes, counts = (values.tolist() for values in lengths[lengths > 0].unique(return_counts=True))
        order = back = None
        if len(sizes) > 1:
            order = lengths.repeat_interleave(lengths).argsort(stable=True)
            back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        found = Parts(list(zip(counts, sizes, strict=True)), order, back)
        cu_seqlens.tpru_parts = found  # pyright: ignore[reportAttributeAccessIssue]
    return found


def attend_within(states: tuple[torch.Tensor, ...], parts: Parts, scaling: float) -> torch.Tensor:
    """Attention of each token to the tokens of its part. Query, key, value and the result are
    [tokens, heads, head_dim].
    """
    import torch

    if parts.order is not None:
        states = tuple(state.index_select(0, parts.order) for state in states)
    ends = accumulate(count * size for count, size in parts.lengths)
    mixed = [
        _attend(tuple(state[end - count * size : end] for state in states), size, scaling)
        for end, (count, size) in zip(ends, parts.lengths, strict=True)
    ]
    every = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return every if parts.back is None else every.index_select(0, parts.back)


def _attend(states: tuple[torch.Tensor, ...], size: int, scaling: float) -> torch.Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    # On a CPU in float32: the backward pass of its bfloat16 kernel took ten times as long (torch 2.13).
    dtype = states[0].dtype
    batched = (state.unflatten(0, (-1, size)).transpose(1, 2) for state in states)
    query, key, value = (state.float() if state.device.type == "cpu" else state for state in batched)
    mixed = scaled_dot_product_attention(query, key, value, scale=scaling)
    return mixed.to(dtype).transpose(1, 2).flatten(0, 1)


def _only_class(module: ModuleType, ending: str) -> Any:
    """The class of the module whose name ends so. Raises ValueError unless there is exactly one."""
    (found,) = (value for name, value in vars(module).items() if name.endswith(ending))
    return found


def distinct_images(pixels: torch.Tensor, grid_thw: torch.Tensor) -> tuple[list[int], list[int]] | None:
    """Find the copies among the images of `pixels` [patches, values]; None when there is no copy.

    Returns the numbers of the images that are no copy of an earlier one, and for every image the place of its
    original in that list. `grid_thw` [images, 3] gives the patches of each image. An image is a copy only
    when all of its values are equal.
    """
    import torch

    grids = [tuple(grid) for grid in grid_thw.tolist()]
    sizes = [t * h * w for t, h, w in grids]
    with torch.no_grad():
        some = pixels[:, ::29].float()  # tells most images apart; all values are compared below
        marks = (some @ torch.linspace(1, 2, some.shape[1], device=some.device)).cpu().split(sizes)
    seen: dict[tuple[object, ...], int] = {}
    firsts: list[int] = []
    copies: list[int] = []
    for image, (grid, mark) in enumerate(zip(grids, marks, strict=True)):
        place = seen.setdefault((*grid, *mark.tolist()), len(firsts))
        if place == len(firsts):
            firsts.append(image)
        copies.append(place)
    if len(firsts) == len(sizes):
        return None
    originals = _rows([firsts[place] for place in copies], sizes, pixels.device)
    return (firsts, copies) if torch.equal(pixels[originals], pixels) else None


def _rows(images: list[int], sizes: list[int], device: torch.device) -> torch.Tensor:
    """The rows of the given images in a tensor that has `sizes[i]` rows of image i."""
    import torch

    ends = torch.tensor(sizes).cumsum(0).tolist()
    return torch.cat([torch.arange(ends[i] - sizes[i], ends[i]) for i in images]).to(device)


def _copied(output: object, copies: list[int], sizes: list[int], patches: int) -> object:
    """Repeat the tower's output for every copy. Its tensors have one row a patch, or one a merged patch."""
    import torch

    if isinstance(output, torch.Tensor):
        merged = patches // output.shape[0]
        return output[_rows(copies, [size // merged for size in sizes], output.device)]
    if isinstance(output, dict):  # transformers' ModelOutput
        return type(output)(**{k: _copied(v, copies, sizes, patches) for k, v in output.items()})
    if isinstance(output, list | tuple):
        return type(output)(_copied(part, copies, sizes, patches) for part in output)
    return output
