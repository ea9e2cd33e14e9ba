"""A patch of transformers' vision towers: training encodes an image once for all samples of its prompt.

Stock veRL 0.9.1 concatenates the images of all sequences of a micro-batch, so the vision tower gets each
image of a prompt once for every sample. The patch encodes the distinct images and copies their features,
which saves time and memory for activations. The gradients of the copies add up in the one image, so the
gradients of the weights stay the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

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
