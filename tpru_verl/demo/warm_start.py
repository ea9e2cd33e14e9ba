"""Train the demo's checkpoint by imitation: it learns to see, to look up options, and the tasks.

    python -m tpru_verl.demo.warm_start --out DIR

All its pictures are of one scene, tracks that fill up. The demo's GRPO run shows it another one, walls of
bricks, of which it has the answers' form and the tasks, but not what to look for. Only the reward tells it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DynamicCache,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    get_linear_schedule_with_warmup,
)

from tpru_verl.demo.scenes import (
    FIRST,
    IMITATED,
    LAST,
    LETTERS,
    ORDERS,
    SCENES,
    look_up,
    make_episode,
    make_row,
    make_rows,
)
from tpru_verl.demo.tiny_model import build_model, build_processor, save, vision_features
from tpru_verl.grading import grade
from tpru_verl.sample import NONE_OPTION, Sample, Task

ROWS = 64  # of a step
NEW_TOKENS = 24  # the longest taught answer has 16
# Far from the seeds of the demo's own training and test rows.
TRAIN_SEED, HELD_OUT_SEED = 7_000_000, 8_000_000

Lesson = TypeVar("Lesson")


@dataclass(frozen=True)
class Batch:
    """Left-padded token ids and their pictures; `labels` is -100 where nothing is to be learnt."""

    input_ids: torch.Tensor  # (rows, length)
    attention_mask: torch.Tensor  # (rows, length)
    token_types: torch.Tensor  # (rows, length), 1 at image tokens
    labels: torch.Tensor  # (rows, length)
    pixel_values: torch.Tensor | None  # (images * 16, 1176)
    grid: torch.Tensor | None  # (images, 3)


def prompt_text(processor: Qwen2_5_VLProcessor, problem: str) -> str:
    """Return the conversation that veRL builds for a problem with the prompt template `bare`."""
    content = [
        {"type": "image"} if part == "<image>" else {"type": "text", "text": part}
        for part in re.split("(<image>)", problem)
        if part
    ]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def encode(
    processor: Qwen2_5_VLProcessor, prompts: Sequence[str], answers: Sequence[str], images: Sequence[bytes]
) -> Batch:
    """Tokenize whole conversations; the answers' tokens are the labels. Empty answers leave prompts alone."""
    inputs = processor(
        text=[prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
        images=[Image.open(io.BytesIO(image)) for image in images] or None,
        padding=True,  # pyright: ignore[reportCallIssue]
        return_tensors="pt",  # pyright: ignore[reportCallIssue]
    )
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        if learnt := len(processor.tokenizer.encode(answer)):
            labels[row, -learnt:] = inputs["input_ids"][row, -learnt:]
    return Batch(
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["mm_token_type_ids"],
        labels,
        inputs.get("pixel_values"),
        inputs.get("image_grid_thw"),
    )


class Lessons(IterableDataset[Batch]):
    """Endless batches of the three tasks, each row seen once."""

    def __init__(self, processor: Qwen2_5_VLProcessor, seed: int) -> None:
        self.processor = processor
        self.seed = TRAIN_SEED + seed

    def __iter__(self) -> Iterator[Batch]:
        for first in itertools.count(0, ROWS):
            rows = [make_row(first + row, self.seed) for row in range(ROWS)]
            yield encode(
                self.processor,
                [prompt_text(self.processor, sample.problem) for sample, _ in rows],
                [f"{_answer(thought)}<|im_end|>" for _, thought in rows],
                [image for sample, _ in rows for image in sample.images],
            )


class Sight(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Endless batches of pixels (frames * 16, 1176) with the progress that each frame shows (frames,)."""

    def __init__(self, processor: Qwen2_5_VLProcessor, seed: int) -> None:
        self.processor = processor
        self.seed = TRAIN_SEED + seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng([self.seed, 1])
        while True:
            moments = rng.uniform(FIRST, LAST, 4 * ROWS)
            frames = [make_episode(IMITATED, rng).frame(moment) for moment in moments]
            pixels = self.processor.image_processor(images=frames, return_tensors="pt")["pixel_values"]
            yield pixels, torch.tensor(moments, dtype=torch.float32)


class Drill(IterableDataset[Batch]):
    """Endless batches of text: options that spell orders, then many look-ups of which option spells which.

    Reordering needs this skill besides seeing, and does not come by it from the pictures' rows alone. Only
    the letters are to be learnt: the orders asked for are random.
    """

    def __init__(self, processor: Qwen2_5_VLProcessor, seed: int) -> None:
        self.processor = processor
        self.seed = TRAIN_SEED + seed
        self.letters = torch.tensor([processor.tokenizer.encode(f" {letter}")[0] for letter in LETTERS])

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, 0])
        while True:
            prompts, answers = zip(*(self._lesson(rng) for _ in range(ROWS // 2)), strict=True)
            batch = encode(self.processor, prompts, answers, [])
            batch.labels[~torch.isin(batch.labels, self.letters)] = -100
            yield batch

    def _lesson(self, rng: np.random.Generator) -> tuple[str, str]:
        options = [str(order) for order in rng.choice(ORDERS, 4, replace=False)]
        others = [order for order in ORDERS if order not in options]
        texts = zip(LETTERS, [*options, NONE_OPTION], strict=True)
        listed = " ".join(f"{letter}. {option}" for letter, option in texts)
        frames = " ".join(f"Frame {number}:" for number in range(1, 5))
        asked = [str(rng.choice(others if rng.random() < 0.2 else options)) for _ in range(24)]
        found = [LETTERS[options.index(order)] if order in options else "E" for order in asked]
        prompt = prompt_text(self.processor, f"Reorder the frames. {frames} Options: {listed}")
        return prompt, "".join(f" so {order} {letter}" for order, letter in zip(asked, found, strict=True))


def _answer(thought: str) -> str:
    """A thought ends with the letter that it arrives at."""
    return f"<think>{thought}</think><answer>{thought[-1]}</answer>"


def embed(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings with the pictures in place (rows, length, hidden), positions (3, rows, length)."""
    embeddings = model.get_input_embeddings()(batch.input_ids)
    if batch.pixel_values is not None:
        features = vision_features(model, batch.pixel_values).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(batch.token_types[..., None] == 1, features)
    positions, _ = model.model.get_rope_index(
        cast(torch.LongTensor, batch.input_ids),
        cast(torch.IntTensor, batch.token_types),
        image_grid_thw=cast("torch.LongTensor | None", batch.grid),
        attention_mask=batch.attention_mask,
    )
    return embeddings, positions


def loss_of(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the labelled tokens."""
    embeddings, positions = embed(model, batch)
    learnt = batch.labels.shape[1] - int((batch.labels != -100).any(0).nonzero()[0])
    logits = model(
        inputs_embeds=embeddings,
        attention_mask=batch.attention_mask,
        position_ids=positions,
        logits_to_keep=learnt + 1,
        use_cache=False,
    ).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch.labels[:, -learnt:].flatten())


def sight_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    head: torch.nn.Linear,
    lesson: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the squared error of the progress that `head` reads from a picture's four tokens.

    The head is thrown away. In a trial without this stage, and with any colours, the tasks were still at
    chance after 340 steps: an answer's letter says little about what to look for.
    """
    pixels, progress = lesson
    features = vision_features(model, pixels).view(len(progress), -1, head.in_features)
    return mse_loss(head(features.mean(1))[:, 0].float(), progress)


@torch.inference_mode()
def generate(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, *, temperature: float = 0.0
) -> torch.Tensor:
    """Continue each prompt by NEW_TOKENS tokens (rows, NEW_TOKENS), greedily where `temperature` is 0."""
    hidden, positions = embed(model, batch)
    mask, position = batch.attention_mask, positions.amax(dim=(0, 2))[None, :, None]
    cache, written = DynamicCache(config=model.config), []
    for _ in range(NEW_TOKENS):
        logits = model(
            inputs_embeds=hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
            use_cache=True,
        ).logits[:, -1]
        if temperature:
            token = torch.multinomial((logits.float() / temperature).softmax(-1), 1)
        else:
            token = logits.argmax(-1, keepdim=True)
        written.append(token)
        hidden = model.get_input_embeddings()(token)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        position = position + 1
        positions = position.expand(3, -1, -1)
    return torch.cat(written, dim=1)


def accuracy(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    samples: Sequence[Sample],
    *,
    temperature: float = 0.0,
) -> dict[Task, float]:
    """Return the share of right answers for each task."""
    prompts = [prompt_text(processor, sample.problem) for sample in samples]
    images = [image for sample in samples for image in sample.images]
    batch = encode(processor, prompts, [""] * len(prompts), images)
    texts = [
        text.split("<|im_end|>")[0]
        for text in processor.tokenizer.batch_decode(generate(model, batch, temperature=temperature))
    ]
    right: dict[Task, list[float]] = {task: [] for task in Task}
    for text, sample in zip(texts, samples, strict=True):
        right[sample.task].append(grade(text, sample.answer, task=sample.task).accuracy)
    return {task: float(np.mean(marks)) for task, marks in right.items()}


def train(
    lessons: IterableDataset[Lesson],
    loss_of: Callable[[Lesson], torch.Tensor],
    parameters: Iterable[torch.nn.Parameter],
    *,
    rate: float,
    title: str,
    steps: int,
) -> Iterator[tuple[int, float]]:
    """Train `parameters` for at most `steps`; yields the number of steps done and the loss after each.

    The learning rate rises over 20 steps and then falls, to nothing in the last step: weights that are saved
    while it is high answer less well than they could, and GRPO would get the credit for settling them.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99))
    schedule = get_linear_schedule_with_warmup(optimizer, 20, steps + 1)
    state = TextColumn("{task.fields[state]}")
    with Progress(TextColumn(title), BarColumn(), state, TimeElapsedColumn()) as progress:
        shown = progress.add_task(title, total=steps, state="")
        loader = DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=4)
        for step, lesson in zip(range(1, steps + 1), loader, strict=False):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(lesson)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            done = f"step {step} of at most {steps}, loss {loss.item():.4f}"
            progress.update(shown, completed=step, state=done)
            yield step, loss.item()


def warm_start(out: Path, *, seed: int, steps: int) -> None:
    """Train from scratch, the tasks for `steps` steps, and save to `out`."""
    texts = [sample.problem for sample in make_rows(300, seed=TRAIN_SEED + seed)]
    texts += [look_up(order, letter) for order in ORDERS for letter in LETTERS]
    texts += ["Step 1 is A", "Step 3 is B", "system\n", "user\n", "assistant\n"] * 3
    processor = build_processor(texts)
    model = build_model(processor.tokenizer, seed)
    model.set_attn_implementation("eager")  # the backward pass of fused attention is slow on a CPU in bf16
    learn = partial(loss_of, model)
    head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1)
    look, seen = partial(sight_loss, model, head), [*model.model.visual.parameters(), *head.parameters()]
    for _ in train(Sight(processor, seed), look, seen, rate=2e-3, title="sight", steps=200):
        pass
    drill = Drill(processor, seed)
    for _, loss in train(drill, learn, model.parameters(), rate=2e-3, title="text", steps=600):
        if loss < 0.05:
            break
    held_out = make_rows(480, seed=HELD_OUT_SEED)
    for step, _ in train(
        Lessons(processor, seed), learn, model.parameters(), rate=1e-3, title="tasks", steps=steps
    ):
        if step % 50 == 0:
            report(model, processor, held_out, f"step {step}")
    for scene in SCENES:
        held_out = make_rows(480, seed=HELD_OUT_SEED, scenes=(scene,))
        report(model, processor, held_out, f"{scene}, greedy")
        report(model, processor, held_out, f"{scene}, at temperature 1", temperature=1.0)
    save(model, processor, out)


def report(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    held_out: Sequence[Sample],
    title: str,
    *,
    temperature: float = 0.0,
) -> None:
    """Print the accuracy of each task and their mean."""
    marks = accuracy(model, processor, held_out, temperature=temperature)
    pooled = float(np.mean(list(marks.values())))
    each = ", ".join(f"{task.value} {mark:.3f}" for task, mark in marks.items())
    print(f"{title}: held-out accuracy {pooled:.3f} ({each})", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=warm_start.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=420, help="of the tasks (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_start(arguments.out, seed=arguments.seed, steps=arguments.steps)


if __name__ == "__main__":
    main()
