"""`data.custom_cls`: TPRU rows for veRL, in the published form or in veRL's own, checked before the start.

Imported by veRL alone (`data.custom_cls.path=pkg://tpru_verl.plugin.dataset`), because its imports are heavy.
"""

import tpru_verl.plugin.required  # noqa: F401

# isort: split
import base64
import io
import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import datasets
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from transformers import AutoProcessor, PreTrainedTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from verl.utils.dataset.rl_dataset import RLHFDataset

from tpru_verl.data.checks import judged_rows, problems_of_row, reserved_tokens, unusable_rows
from tpru_verl.data.source.forms import (
    Form,
    Source,
    TrainerKeys,
    check_kind,
    columns_of,
    trainer_form,
    units_of,
)
from tpru_verl.data.source.hub import load_file
from tpru_verl.data.source.parts import KINDS, Part, check_lines, parts_of
from tpru_verl.data.source.rows import Row, columns_read, row_of
from tpru_verl.data.tokens.pictures import blindness, patch_and_factor, pixel_bounds
from tpru_verl.data.tokens.processors import Size
from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN
from tpru_verl.data.tokens.templates import ChatTemplate, opens_think
from tpru_verl.launch.checks import too_many_images
from tpru_verl.launch.settings import KEYS
from tpru_verl.models import verl_refusal
from tpru_verl.plugin.prompt_lengths import ROW, rows_of_frame, without_long_prompts
from tpru_verl.prompts import render
from tpru_verl.sample import parse_options
from tpru_verl.terminal import line_of

logger = logging.getLogger(__name__)

LIMIT_IMAGES = KEYS["limit_images"][0]
_URI = "data:image;base64,"

Sizes = tuple[Size, ...]


class TPRUDataset(RLHFDataset):
    """Rows of `problem`, `answer`, `images`, or of veRL's `prompt`, `images`, `reward_model`.

    A file is a parquet, json or jsonl file, a folder of them, or a Hub id `org/name`; the latter two take
    `@split`. Keys under `data`, beside veRL's: `problem_key`, `answer_key`, `image_key`; `prompt_template`
    (a template's name or path; a prompt in veRL's form is taken as it is); `min_pixels` and `max_pixels` of
    an image, as Qwen's processor understands them; `revision` of a Hub id; `on_invalid`: `error` stops at
    broken rows, `skip` lists and leaves them out.

    Raises FileNotFoundError for a file that is missing and ValueError for one that is unreadable, empty or
    lacks columns, for broken rows, for bounds that cannot hold, and where nothing is left to train on.
    """

    dataframe: datasets.Dataset

    def __init__(
        self,
        data_files: str | list[str],
        tokenizer: PreTrainedTokenizer,
        config: DictConfig,
        processor: ProcessorMixin | None = None,
        max_samples: int = -1,
    ) -> None:
        if not data_files or (not isinstance(data_files, str) and not all(data_files)):
            raise ValueError(
                "data.train_files or data.val_files is not set: name a file, a folder or a Hub id"
            )
        if processor is None:
            raise ValueError(f"actor_rollout_ref.model.path: {_no_processor(tokenizer)}")
        self.problem_key = str(config.get("problem_key") or "problem")
        self.answer_key = str(config.get("answer_key") or "answer")
        self.prompt_template = str(config.get("prompt_template") or "tpru")
        self.on_invalid = str(config.get("on_invalid") or "error")
        if self.on_invalid not in ("error", "skip"):
            raise ValueError(f"data.on_invalid: found {self.on_invalid!r}, expected error or skip")
        # The agent loop resizes by the processor's patch, so we have to: data.image_patch_size is 14 unless
        # set, which is wrong for Qwen3-VL.
        self.patch_size, self.image_factor = patch_and_factor(processor)
        self.pixel_bounds, warning = pixel_bounds(config, processor, config.get("mm_processor_kwargs"))
        if warning:
            logger.warning(warning)
        lost = blindness(
            processor,
            processor_kwargs=config.get("mm_processor_kwargs"),
            chat_kwargs=config.get("apply_chat_template_kwargs"),
        )
        if lost:
            raise ValueError(f"actor_rollout_ref.model.path: {lost}; no image would reach the model")
        # Of the run that the settings of the data are a part of; elsewhere, as in a test, there is no limit.
        self.limit_images = int(OmegaConf.select(config._get_root(), LIMIT_IMAGES) or 0)
        super().__init__(data_files, tokenizer, config, processor, max_samples)
        self.opened_think = opens_think(cast(ChatTemplate, processor), **self.apply_chat_template_kwargs)

    def _download(self, use_origin_parquet: bool = False) -> None:
        """Leaves to veRL what lies elsewhere (`hdfs://`); folders and Hub ids are not for it."""
        self.data_files = list(self.original_data_files if use_origin_parquet else self.data_files)
        if self.use_shm or any("://" in str(file) for file in self.data_files):
            super()._download(use_origin_parquet)

    def _read_files_and_tokenize(self) -> None:
        revision = self.config.get("revision")
        keys = TrainerKeys(self.problem_key, self.answer_key, self.image_key, self.prompt_key)
        self.parts = [part for file in self.data_files for part in parts_of(str(file), revision=revision)]
        loaded = [_load(part, keys) for part in self.parts]
        self.forms = [
            trainer_form(part.name, rows.column_names, keys)
            for part, rows in zip(self.parts, loaded, strict=True)
        ]
        kept = [_columns_of_form(rows, form) for rows, form in zip(loaded, self.forms, strict=True)]
        self.part_starts = [0, *accumulate(len(rows) for rows in kept)]
        names = ", ".join(part.name for part in self.parts)
        try:
            frame = datasets.concatenate_datasets(kept)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{names}: columns of different types: {line_of(error)}") from error
        total = len(frame)
        frame = frame.add_column(ROW, list(range(total)))
        if 0 < self.max_samples < total:
            order = np.arange(self.max_samples)
            if self.shuffle:  # veRL's draw: the same rows for the same seed
                order = np.random.default_rng(self.seed).choice(total, size=self.max_samples, replace=False)
            frame = frame.select(order.tolist())
        self.dataframe = without_long_prompts(self, *self.sound_rows(frame))
        logger.info("%d of %d rows from %s", len(self.dataframe), total, names)
        self._warn_of_few(names, len(frame))

    def _warn_of_few(self, names: str, given: int) -> None:
        """Say where too few rows are left to train on: veRL will divide by its zero steps.

        The launcher counts what it can before the start; rows of the Hub, and a draw of a few, show here.
        """
        trains = (self.config.get("train_files"), self.config.get("train_max_samples", -1))
        batch = self.config.get("train_batch_size") or 0
        if (self.original_data_files, self.max_samples) != (_listed(trains[0]), trains[1]):
            return
        if len(self.dataframe) < batch:
            logger.warning(
                "data.train_files: found %d of %d rows of %s left to train on, expected %d or more, one "
                "batch; give more rows, or lower data.train_batch_size",
                *(len(self.dataframe), given, names, batch),
            )

    def row_of(self, record: Mapping[str, object]) -> Row:
        """A record of the frame as the row of the source that it came from."""
        position = cast(int, record[ROW])
        part = bisect_right(self.part_starts, position) - 1
        cells = {name: value for name, value in record.items() if name != ROW}
        return row_of(self.parts[part], position - self.part_starts[part], cells, self.forms[part])

    def sound_rows(self, frame: datasets.Dataset) -> tuple[datasets.Dataset, list[Sizes]]:
        """Drops or raises for rows that break a rule; also the sizes of the images of those that are kept.

        One pass, BATCH_ROWS in memory at a time.
        """
        broken: dict[int, str] = {}
        sizes: list[Sizes] = []
        known: dict[Sizes, Sizes] = {}  # so that a million rows of equal sizes take the place of one
        unrecognised = 0
        reserved = reserved_tokens(self.tokenizer)
        for i, row in enumerate(rows_of_frame(self, frame)):
            problems = list(problems_of_row(row, reserved=reserved)) or self._problems_of_run(row)
            if problems:
                broken[i] = "; ".join(problems)
                continue
            found = tuple((h.width, h.height) for h in row.headers if not isinstance(h, str))
            sizes.append(known.setdefault(found, found))
            unrecognised += row.task is None
        if unrecognised:
            logger.warning(
                "%d of %d rows: the text does not say which of the three tasks they are; they get the "
                "general prompt and data_source tpru/unrecognised. A column `task` settles it.",
                unrecognised,
                len(frame),
            )
        return self.drop(frame, broken), sizes

    def _problems_of_run(self, row: Row) -> list[str]:
        """What makes a sound row unusable with this run's template, limit, pixel bounds and processor."""
        problems = too_many_images(row, self.limit_images, LIMIT_IMAGES)
        for i, header in enumerate(row.headers):
            if isinstance(header, str):
                continue
            width, height = header.width, header.height
            # Qwen's own rule: a side must not vanish under max_pixels.
            if min(smart_resize(height, width, self.image_factor, **self.pixel_bounds)) < self.image_factor:
                found = f"found {width} x {height} pixels"
                problems.append(
                    f"{self.image_key}[{i}]: {found}, too narrow for max_pixels={self.pixel_bounds}"
                )
        if row.messages is None:
            render(str(row.problem), row.task, self.prompt_template)
        return problems

    def drop(self, frame: datasets.Dataset, broken: dict[int, str]) -> datasets.Dataset:
        """The frame without the rows of these numbers, each with its reason.

        Raises ValueError with `on_invalid=error`, and where no row is left.
        """
        if not broken:
            return frame
        rows = frame[ROW]
        text = unusable_rows([(self.place(rows[i]), reason) for i, reason in broken.items()], len(frame))
        if self.on_invalid == "error" or len(broken) == len(frame):
            raise ValueError(f"{text}\nMend them, or leave them out with data.on_invalid=skip.")
        logger.warning("%s\nThey are left out: data.on_invalid=skip.", text)
        return frame.select([i for i in range(len(frame)) if i not in broken])

    def place(self, position: int) -> str:
        """File and row of a position in the files as they came."""
        part = bisect_right(self.part_starts, position) - 1
        return f"{self.parts[part].name} row {position - self.part_starts[part]}"

    def chat(self, row: Row) -> list[dict[str, object]]:
        """Chat messages with images as encoded data URIs.

        They travel through worker processes and Ray to the agent loop: encoded they are a fraction of the
        decoded picture's size, and any consumer of Qwen's message format reads them.
        """
        uris = [f"{_URI}{base64.b64encode(view).decode('ascii')}" for view in row.views]
        return self.chat_of(row, uris)

    def chat_of(self, row: Row, images: Sequence[str]) -> list[dict[str, object]]:
        """Chat messages with these images in the places of the tags. Raises ValueError as `render`."""
        prompt = row.messages
        if prompt is None:
            prompt = [{"role": "user", "content": render(str(row.problem), row.task, self.prompt_template)}]
        elements = [{"image": image, **self.pixel_bounds} for image in images]
        # A copy: veRL writes into what it gets.
        return self._build_messages(
            {"prompt": [dict(message) for message in prompt], self.image_key: elements}, key="prompt"
        )

    @classmethod
    def _process_multi_modal_info(cls, messages: list[dict], image_patch_size: int, config: DictConfig):
        """As veRL's; but qwen-vl-utils copies each picture that it reads from a data URI."""
        opened = [
            {**message, "content": [_opened(item) for item in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ]
        return super()._process_multi_modal_info(opened, image_patch_size, config)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One row as veRL's trainer and reward loop take it; nothing else of the file goes along."""
        record = self.dataframe[item]
        row, index = self.row_of(record), record[ROW]
        task = row.task
        extra_info = {
            "scene": row.field("scene"),
            "source_id": row.source_id,
            "row_id": row.row_id,
            **row.extra,
            "task": task.value if task else "",
            "options": parse_options(str(row.problem)),
            "opened_think": self.opened_think,  # for the reward
            "index": index,
            "place": row.place,  # for errors of the agent loop
        }
        fallback = task.data_source if task else "tpru/unrecognised"
        result = {
            "raw_prompt": self.chat(row),
            "data_source": row.field("data_source") or fallback,
            "reward_model": {"style": "rule", "ground_truth": str(row.answer).strip()},
            "extra_info": extra_info,
            "index": index,
            "tools_kwargs": row.extra.get("tools_kwargs", {}),
            "interaction_kwargs": row.extra.get("interaction_kwargs", {}),
            # veRL builds its batches around at least one tensor.
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        }
        if agent := row.given.get("agent_name"):
            result["agent_name"] = agent
        return result


def _listed(files: object) -> list[str]:
    """`data.train_files`, which veRL takes as one or as several."""
    return [files] if isinstance(files, str) else list(cast("Sequence[str]", files or ()))


def _load(part: Part, keys: TrainerKeys) -> datasets.Dataset:
    """The part's rows on disk, as veRL keeps them. Raises ValueError."""
    path = part.path
    if path is None:
        return cast(datasets.Dataset, part.hub)
    check_kind(part)
    if not columns_of(part) or not sum(unit.rows is None or unit.rows for unit in units_of(part)):
        raise ValueError(f"{path}: found 0 rows, expected at least 1")
    check_lines(part)
    kind = KINDS[path.suffix]
    try:
        return load_file(path, kind)
    except Exception as error:
        _name_broken_rows(part, keys)
        cause = error.__cause__ or error
        raise ValueError(f"{path}: not readable as {kind}: {line_of(cause)}") from error


def _name_broken_rows(part: Part, keys: TrainerKeys) -> None:
    """Raises ValueError for rows that `datasets` cannot load, which it calls a file that cannot be read."""
    judged = [(row.place, "; ".join(found)) for row, found in judged_rows(Source.open(part.name, keys=keys))]
    if broken := [(place, reason) for place, reason in judged if reason]:
        cure = f"`tpru data prepare {part.name} OUT --drop-invalid` leaves them out"
        raise ValueError(f"{unusable_rows(broken, len(judged))}\nRepair them; {cure}.")


def _columns_of_form(rows: datasets.Dataset, form: Form) -> datasets.Dataset:
    """Those that are read, and the counts of `tpru data prepare` where they are of the same prompts."""
    found = rows.column_names
    counted = form.kind == "published" and {COLUMN, KEY_COLUMN} <= set(found)
    wanted = (*columns_read(form), *((COLUMN, KEY_COLUMN) if counted else ()))
    return rows.select_columns([name for name in found if name in wanted])


def _no_processor(tokenizer: PreTrainedTokenizer) -> str:
    """Why veRL has no processor for the tokenizer's model: it logs the reason as a warning, and goes on."""
    path = tokenizer.name_or_path
    try:
        found = AutoProcessor.from_pretrained(path)
    except Exception as error:  # of the Hub, of files, of versions
        return f"{path}: its processor cannot be loaded ({type(error).__name__}: {line_of(error)})"
    kind = type(found).__name__
    if isinstance(found, PreTrainedTokenizerBase):
        return f"{path}: found {kind} and no processor, expected a model for images"
    return f"{path}: {verl_refusal(kind) or f'veRL cannot use its {kind}; its warning above says why'}"


def _opened(item: dict[str, object]) -> dict[str, object]:
    """A message's item with its picture opened, where that is one of ours."""
    image = item.get("image")
    if not isinstance(image, str) or not image.startswith(_URI):
        return item
    return {**item, "image": Image.open(io.BytesIO(base64.b64decode(image[len(_URI) :])))}
