"""A patch of veRL 0.9.1: wandb, TensorBoard and trackio get validation answers with the rows' pictures.

veRL's `ValidationGenerationsLogger` hands all loggers text alone. docs/patches.md lists all patches.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from tpru_verl.plugin.hooks import require
from tpru_verl.plugin.records import as_list, rows_of, same_ones

if TYPE_CHECKING:
    from PIL.Image import Image
    from tensordict import TensorDict

logger = logging.getLogger("tpru_verl")

MOST_ROWS = 16  # of a validation, however large trainer.log_val_generations is
MOST_PICTURES = 8  # of a row
SIDE = 224  # pixels of the longer side of a picture
GAP = 4  # pixels between two pictures
NAME = "val/pictures"


class Pictured(NamedTuple):
    """A validation answer as a logger shows it. `pictures`: those of the row, side by side, in order."""

    row: str
    pictures: Image
    prompt: str
    answer: str
    score: float


def validation_pictures(trainer_base: ModuleType) -> None:
    """Stock veRL logs validation answers as text, so that nobody sees what the model saw.

    With `trainer.log_val_generations` over 0 and a logger that takes pictures, the same rows of each
    validation go there, the first answer to each, MOST_ROWS at most. Nothing is done between validations.
    """
    trainer = trainer_base.PPOTrainer
    require(trainer, "fit", "_maybe_log_val_generations", "_val_metrics_update")
    fit, log, update = trainer.fit, trainer._maybe_log_val_generations, trainer._val_metrics_update
    noted: dict[str, tuple[str, list[str]]] = {}  # uid -> row id and pictures as data URIs
    texts: list[Sequence[Any]] = []  # prompts, answers and scores of the validation

    def fit_noting_pictures(self: Any, agent_loop_manager: Any) -> None:
        generate = agent_loop_manager.generate_sequences

        def generate_sequences(prompts: TensorDict, *args: object, **kwargs: object) -> object:
            if "validate" in prompts and _most_rows(self.config):
                noted.update(_pictures_of(prompts))
                uids = list(noted)
                kept = same_ones([noted[uid][0] for uid in uids], _most_rows(self.config))
                for uid in set(uids) - {uids[i] for i in kept}:
                    del noted[uid]
            return generate(prompts, *args, **kwargs)

        agent_loop_manager.generate_sequences = generate_sequences
        fit(self, agent_loop_manager)

    def _maybe_log_val_generations(
        self: Any, inputs: Sequence[str], outputs: Sequence[str], scores: Sequence[float]
    ) -> None:
        log(self, inputs, outputs, scores)
        texts[:] = [inputs, outputs, scores]

    def _val_metrics_update(
        self: Any, data_sources: Any, sample_uids: Sequence[str], *args: Any, **kwargs: Any
    ) -> Any:
        if noted and texts:
            try:
                _send(self, list(_pictured(noted, sample_uids, *texts)))
            except Exception as error:  # of a logger, or of the network: no reason to end a run
                logger.warning(
                    "validation answers were logged without pictures: %s: %s", type(error).__name__, error
                )
        noted.clear()
        texts.clear()
        return update(self, data_sources, sample_uids, *args, **kwargs)

    trainer.fit = fit_noting_pictures
    trainer._maybe_log_val_generations = _maybe_log_val_generations
    trainer._val_metrics_update = _val_metrics_update


def _most_rows(config: Any) -> int:
    """0 where no logger of the run takes pictures."""
    taking = set(_LOGGERS) & set(_names(config))
    return min(MOST_ROWS, config.trainer.get("log_val_generations") or 0) if taking else 0


def _names(config: Any) -> Sequence[str]:
    found = config.trainer.logger
    return [found] if isinstance(found, str) else found


def _pictures_of(prompts: TensorDict) -> dict[str, tuple[str, list[str]]]:
    if "raw_prompt" not in prompts:
        return {}
    rows = rows_of(prompts)
    pairs = zip(as_list(prompts["uid"]), as_list(prompts["raw_prompt"]), strict=True)
    return {
        str(uid): (str(rows.get(str(uid), {}).get("row_id") or ""), found)
        for uid, chat in pairs
        if (found := [*_uris(chat)])
    }


def _uris(chat: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The pictures of a chat of `TPRUDataset`, MOST_PICTURES at most."""
    items = [
        item for message in chat if not isinstance(message["content"], str) for item in message["content"]
    ]
    found = [uri for item in items if isinstance(uri := item.get("image"), str) and uri.startswith("data:")]
    yield from found[:MOST_PICTURES]


def _pictured(
    noted: Mapping[str, tuple[str, list[str]]],
    uids: Sequence[str],
    prompts: Sequence[str],
    answers: Sequence[str],
    scores: Sequence[float],
) -> Iterator[Pictured]:
    """In the order of the rows' ids, which is that of each validation."""
    first = {uid: i for i, uid in reversed(list(enumerate(uids)))}
    for uid in sorted(noted.keys() & first.keys(), key=lambda uid: noted[uid][0]):
        (row, uris), i = noted[uid], first[uid]
        yield Pictured(row, _side_by_side(uris), prompts[i], answers[i], float(scores[i]))


def _side_by_side(uris: Sequence[str]) -> Image:
    from PIL import Image

    from tpru_verl.data.images import thumbnail

    found = [thumbnail(base64.b64decode(uri.partition(",")[2]), SIDE) for uri in uris]
    width = sum(picture.width + GAP for picture in found) - GAP
    strip = Image.new("RGB", (width, max(picture.height for picture in found)), "white")
    left = 0
    for picture in found:
        strip.paste(picture, (left, 0))
        left += picture.width + GAP
    return strip


def _send(trainer: Any, answers: Sequence[Pictured]) -> None:
    for name in _names(trainer.config):
        if name in _LOGGERS and answers:
            _LOGGERS[name](trainer, answers)


def _to_wandb(trainer: Any, answers: Sequence[Pictured]) -> None:
    import wandb

    if wandb.run is None:
        return
    table = wandb.Table(columns=list(Pictured._fields))
    for row, pictures, *rest in answers:
        table.add_data(row, wandb.Image(pictures), *rest)
    wandb.log({NAME: table}, step=trainer.global_steps)


def _to_tensorboard(trainer: Any, answers: Sequence[Pictured]) -> None:
    import numpy as np

    # Made by veRL when it logged the same validation as text.
    writer = trainer.validation_generations_logger.writer
    for i, (row, pictures, prompt, answer, score) in enumerate(answers, start=1):
        text = f"**{row}**\n\n{prompt}\n\n{answer}\n\nscore {score}"
        writer.add_image(f"{NAME}/{i}", np.asarray(pictures), trainer.global_steps, dataformats="HWC")
        writer.add_text(f"{NAME}/{i}", text, trainer.global_steps)
    writer.flush()


def _to_trackio(trainer: Any, answers: Sequence[Pictured]) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    traces = [
        trackio.Trace(
            messages=[
                {"role": "user", "content": [trackio.Image(pictures), {"type": "text", "text": prompt}]},
                {"role": "assistant", "content": answer},
            ],
            metadata={"row": row, "score": score},
        )
        for row, pictures, prompt, answer, score in answers
    ]
    trackio.log({NAME: traces}, step=trainer.global_steps)


_LOGGERS: dict[str, Callable[[Any, Sequence[Pictured]], None]] = {
    "wandb": _to_wandb,
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
}
