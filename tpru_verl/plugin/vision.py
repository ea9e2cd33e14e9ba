"""The vision tower, in training: an image that the n samples of a prompt share is encoded once.

Stock veRL 0.9.1 concatenates the images of all sequences of a micro-batch, so those of a prompt stand there
once for each of its samples. Encoded once and handed out, they cost a part of the time and of the memory for
activations; the gradients of their copies add up in the one, as they do in the weights.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from tpru_verl.plugin.hooks import replace, require

if TYPE_CHECKING:
    import torch

# Module of transformers -> its vision tower.
TOWERS = {
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "transformers.models.qwen3_vl.modeling_qwen3_vl": "Qwen3VLVisionModel",
}


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
        return _handed_out(outputs, copies, [sizes[first] for first in firsts], shared.shape[0])

    replace(tower, "forward", forward)


def distinct_images(pixels: torch.Tensor, grid_thw: torch.Tensor) -> tuple[list[int], list[int]] | None:
    """The images of `pixels` [patches, values] that are no copy of an earlier one, and for every image the
    place among them of the one that it equals. None when there is no copy.

    `grid_thw` [images, 3] gives each image's patches. Images are equal when every value is.
    """
    import torch

    grids = [tuple(grid) for grid in grid_thw.tolist()]
    sizes = [t * h * w for t, h, w in grids]
    with torch.no_grad():
        some = pixels[:, ::29].float()  # enough to tell images apart; equality is checked below
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


def _handed_out(output: object, copies: list[int], sizes: list[int], patches: int) -> object:
    """An output of the tower for every copy; its tensors have a row a patch, or one for a few merged ones."""
    import torch

    if isinstance(output, torch.Tensor):
        merged = patches // output.shape[0]
        return output[_rows(copies, [size // merged for size in sizes], output.device)]
    if isinstance(output, dict):  # transformers' ModelOutput
        return type(output)(**{k: _handed_out(v, copies, sizes, patches) for k, v in output.items()})
    if isinstance(output, list | tuple):
        return type(output)(_handed_out(part, copies, sizes, patches) for part in output)
    return output
