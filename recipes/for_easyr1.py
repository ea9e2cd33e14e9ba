"""Writes the recipes for EasyR1 from `easyr1/tpru_7b.yaml`, because EasyR1's files cannot inherit.

python -m tpru_verl.recipes.for_easyr1    # in a clone, after a change of tpru_7b.yaml or of this file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "easyr1"
SOURCE = "tpru_7b"


class Change(NamedTuple):
    """A value in YAML that differs from tpru_7b, and the reason; "" keeps the comment that is there."""

    value: str
    why: str = ""


class Variant(NamedTuple):
    """The first comment of a file, and its changes by key."""

    head: tuple[str, ...]
    changes: Mapping[str, Change]


BOTH = "For EasyR1 0.3.2 and its head (0.3.3.dev0), with omegaconf<2.4 and transformers<5."
# The published reward and prompt. `tpru train RECIPE +tpru=paper` puts them on top of any recipe.
PAPER = {
    "data.format_prompt": Change(
        "tpru_verl/prompts/paper.jinja", "Instructs as the published template does."
    ),
    "worker.reward.reward_function_kwargs.preset": Change(
        "paper", "The published function: 0.9 accuracy + 0.1 x 0.2 format."
    ),
}
_3B = {"worker.actor.model.model_path": Change("Qwen/Qwen2.5-VL-3B-Instruct")}

VARIANTS = {
    "tpru_3b": Variant(
        ("tpru_7b with Qwen2.5-VL-3B. The published 3B recipe differs in nothing else.", BOTH), _3B
    ),
    "tpru_3b_paper": Variant(("tpru_3b with the published reward and prompt.", BOTH), {**_3B, **PAPER}),
    "tpru_7b_paper": Variant(("tpru_7b with the published reward and prompt.", BOTH), PAPER),
    "tpru_32b": Variant(
        (
            "tpru_7b with Qwen2.5-VL-32B. No recipe was published for 32B, so only values that depend on the",
            "size of the model differ. It was not run yet; `tpru doctor` estimates 570 GiB of host memory.",
            BOTH,
        ),
        {
            "worker.actor.model.model_path": Change("Qwen/Qwen2.5-VL-32B-Instruct"),
            "worker.actor.micro_batch_size_per_device_for_update": Change(
                "2", "Half of the 7B value, because activations grow with depth and width."
            ),
            "worker.actor.micro_batch_size_per_device_for_experience": Change("8"),
            "worker.rollout.tensor_parallel_size": Change("4", "The weights are 65 GB in bf16."),
        },
    ),
    "tpru_qwen3vl_4b": Variant(
        (
            "tpru_7b with Qwen3-VL-4B, a newer model of half the size. No recipe was published for it.",
            "It needs EasyR1's head (0.3.3.dev0), because 0.3.2 does not know the model, omegaconf<2.4 and",
            "transformers>=4.57,<5.",
        ),
        {
            "data.min_pixels": Change(
                "65536",
                "The processor enlarges an image to at least 65536 pixels, and EasyR1 has no key for that.\n"
                "So an image has 64 tokens of 32 x 32 pixels or a few more; with Qwen2.5-VL it has 21 to 47.",
            ),
            "data.max_pixels": Change("65536"),
            "worker.actor.model.model_path": Change("Qwen/Qwen3-VL-4B-Instruct"),
            "trainer.logger": Change(
                "[console, file]", "Published: wandb as well, which needs an account. `file` writes jsonl."
            ),
        },
    ),
}


def text_of(name: str) -> str:
    """The whole text of a variant's file."""
    variant = VARIANTS[name]
    body = (FOLDER / f"{SOURCE}.yaml").read_text(encoding="utf-8").partition("\ndata:\n")[2]
    head = [
        *variant.head,
        "Written by recipes/for_easyr1.py from tpru_7b.yaml: change those two, not this file.",
        "",
        f"  tpru train {name}",
        f"  python -m verl.trainer.main config=recipes/easyr1/{name}.yaml       # from the root of a clone",
    ]
    changes = {**variant.changes, "trainer.experiment_name": Change(name)}
    lines = "".join(f"# {line}".rstrip() + "\n" for line in head) + f"data:\n{body}"
    return "\n".join(
        _changed(lines.replace(f"checkpoints/tpru/{SOURCE}", f"checkpoints/tpru/{name}"), changes)
    )


def _changed(text: str, changes: Mapping[str, Change]) -> Iterator[str]:
    """The lines with their changed values. Raises KeyError for a key that the text does not have."""
    left = dict(changes)
    path: list[str] = []
    comment: list[str] = []
    for line in text.split("\n"):
        words = line.strip()
        if words.startswith("#") and line.startswith(" "):
            comment.append(line)
            continue
        indent = len(line) - len(words)
        if words and not words.startswith("#"):
            path = [*path[: indent // 2], words.partition(":")[0]]
            if change := left.pop(".".join(path), None):
                line = f"{' ' * indent}{path[-1]}: {change.value}"
                if change.why:
                    comment = [f"{' ' * indent}# {why}" for why in change.why.split("\n")]
        yield from comment
        yield line
        comment = []
    if left:
        raise KeyError(f"{SOURCE}.yaml has no {', '.join(left)}")


if __name__ == "__main__":
    for variant_name in VARIANTS:
        (FOLDER / f"{variant_name}.yaml").write_text(text_of(variant_name), encoding="utf-8")
