"""`data.custom_cls`: TPRU rows for veRL, in the published form or in veRL's own, checked before the start.

Imported by veRL alone (`data.custom_cls.path=pkg://tpru_verl.plugin.dataset`), because its imports are heavy.
"""

import base64
import io
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from pyarrow.parquet import read_metadata, read_schema
from qwen_vl_utils.vision_process import smart_resize
from transformers import PreTrainedTokenizer, ProcessorMixin
from verl.utils.dataset.rl_dataset import RLHFDataset

from tpru_verl.data.images import problem_of
from tpru_verl.data.source.cells import image_bytes
from tpru_verl.data.source.forms import OPTIONAL
from tpru_verl.data.source.hub import undecoded
from tpru_verl.data.source.parts import KINDS, Part, parts_of
from tpru_verl.data.source.rows import messages_text
from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN, image_size
from tpru_verl.plugin.prompt_lengths import without_long_prompts
from tpru_verl.prompts import render
from tpru_verl.sample import Task, parse_options, problems_of, recognise_task
from tpru_verl.terminal import line_of

logger = logging.getLogger(__name__)

LISTED = 10  # broken rows named in a message; the others are counted
_URI = "data:image;base64,"
_ROW = "_tpru_row"  # position in the files as they came, kept through every selection

Row = dict[str, object]


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
            raise ValueError(
                "the model has no image processor, but every TPRU row has images: use a VL model"
            )
        self.problem_key = str(config.get("problem_key") or "problem")
        self.answer_key = str(config.get("answer_key") or "answer")
        self.prompt_template = str(config.get("prompt_template") or "tpru")
        self.on_invalid = str(config.get("on_invalid") or "error")
        if self.on_invalid not in ("error", "skip"):
            raise ValueError(f"data.on_invalid: found {self.on_invalid!r}, expected error or skip")
        # The agent loop resizes by the processor's patch, so we have to: data.image_patch_size is 14 unless
        # set, which is wrong for Qwen3-VL.
        self.patch_size, self.image_factor = _patch_and_factor(processor)
        self.pixel_bounds = _pixel_bounds(config, processor)
        super().__init__(data_files, tokenizer, config, processor, max_samples)

    def _download(self, use_origin_parquet: bool = False) -> None:
        """Leaves to veRL what lies elsewhere (`hdfs://`); folders and Hub ids are not for it."""
        self.data_files = list(self.original_data_files if use_origin_parquet else self.data_files)
        if self.use_shm or any("://" in str(file) for file in self.data_files):
            super()._download(use_origin_parquet)

    def _read_files_and_tokenize(self) -> None:
        revision = self.config.get("revision")
        parts = [part for file in self.data_files for part in parts_of(str(file), revision=revision)]
        kept = [self._only_known_columns(part.name, _load(part)) for part in parts]
        self.part_names = [part.name for part in parts]
        self.part_folders = [part.folder for part in parts]
        self.part_starts = [0, *accumulate(len(part) for part in kept)]
        try:
            frame = datasets.concatenate_datasets(kept)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{', '.join(self.part_names)}: columns of different types: {line_of(error)}"
            ) from error
        total = len(frame)
        frame = frame.add_column(_ROW, list(range(total)))
        if 0 < self.max_samples < total:
            order = np.arange(self.max_samples)
            if self.shuffle:  # veRL's draw: the same rows for the same seed
                order = np.random.default_rng(self.seed).choice(total, size=self.max_samples, replace=False)
            frame = frame.select(order.tolist())
        self.dataframe = without_long_prompts(self, self._without_broken_rows(frame))
        logger.info("%d of %d rows from %s", len(self.dataframe), total, ", ".join(self.part_names))

    def _only_known_columns(self, name: str, part: datasets.Dataset) -> datasets.Dataset:
        found = part.column_names
        forms = (
            (self.problem_key, self.answer_key, self.image_key),
            (self.prompt_key, self.image_key, "reward_model"),
        )
        form = next((form for form in forms if set(form) <= set(found)), None)
        if form is None:
            raise ValueError(
                f"{name}: found columns {', '.join(found) or '(none)'}; expected {', '.join(forms[0])}, "
                f"or veRL's {', '.join(forms[1])}; data.{{problem,answer,image}}_key name others"
            )
        if len(part) == 0:
            raise ValueError(f"{name}: found 0 rows, expected at least 1")
        optional = (*OPTIONAL, COLUMN, KEY_COLUMN) if {COLUMN, KEY_COLUMN} <= set(found) else OPTIONAL
        return part.select_columns([*form, *(c for c in optional if c in found and c not in form)])

    def _place(self, row: Row) -> tuple[str, Path | None, int]:
        """File, its folder (None for the Hub) and the row's number in it."""
        position = cast(int, row[_ROW])
        part = bisect_right(self.part_starts, position) - 1
        return self.part_names[part], self.part_folders[part], position - self.part_starts[part]

    def _text_and_answer(self, row: Row) -> tuple[object, object]:
        """What is asked, with its `<image>` tags, and the answer, in either form."""
        if row.get(self.problem_key) is not None:
            return row[self.problem_key], row.get(self.answer_key)
        reward_model = row.get("reward_model")
        answer = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
        return messages_text(row.get(self.prompt_key)), answer

    def _without_broken_rows(self, frame: datasets.Dataset) -> datasets.Dataset:
        """Drops or raises for rows that break a rule; one pass, one row in memory at a time."""
        broken: dict[int, str] = {}
        unrecognised = 0
        for i, row in enumerate(cast("Iterator[Row]", iter(frame))):
            if problems := self._problems(row):
                broken[i] = "; ".join(problems)
            elif _task_of(row, str(self._text_and_answer(row)[0])) is None:
                unrecognised += 1
        if unrecognised:
            logger.warning(
                "%d of %d rows: the text does not say which of the three tasks they are; they get the "
                "general prompt and data_source tpru/unrecognised. A column `task` settles it.",
                unrecognised,
                len(frame),
            )
        return self._drop(frame, broken)

    def _problems(self, row: Row) -> list[str]:
        text, answer = self._text_and_answer(row)
        cells = row.get(self.image_key)
        if not isinstance(cells, list):
            return [f"{self.image_key}: found {type(cells).__name__}, expected a list of images"]
        problems = problems_of(text, answer, len(cells))
        task = _given_task(row)
        if task and task not in list(Task):
            problems.append(f"task: found {task!r}, expected one of {', '.join(t.value for t in Task)}")
        if problems:
            return problems
        folder = self._place(row)[1]
        for i, cell in enumerate(cells):
            try:
                self._check_image(image_bytes(cell, folder))
            except (ValueError, OSError) as error:
                return [f"{self.image_key}[{i}]: {line_of(error)}"]
        if row.get(self.problem_key) is not None:
            render(str(text), _task_of(row, str(text)), self.prompt_template)
        return []

    def _check_image(self, data: bytes) -> None:
        """By the header alone; raises ValueError."""
        if problem := problem_of(data):
            raise ValueError(problem)
        width, height = image_size(data)
        # Qwen's own rule: a side must not vanish under max_pixels.
        if min(smart_resize(height, width, self.image_factor, **self.pixel_bounds)) < self.image_factor:
            raise ValueError(
                f"found {width} x {height} pixels, too narrow for max_pixels={self.pixel_bounds}"
            )

    def _drop(self, frame: datasets.Dataset, broken: dict[int, str]) -> datasets.Dataset:
        if not broken:
            return frame
        lines = [f"{len(broken)} of {len(frame)} rows are broken (rows count from 0):"]
        rows = frame[_ROW]
        for i, reason in list(broken.items())[:LISTED]:
            name, _, number = self._place({_ROW: rows[i]})
            lines.append(f"  {name} row {number}: {reason}")
        if len(broken) > LISTED:
            lines.append(f"  and {len(broken) - LISTED} more")
        if self.on_invalid == "error" or len(broken) == len(frame):
            raise ValueError("\n".join([*lines, "Mend them, or leave them out with data.on_invalid=skip."]))
        logger.warning("%s", "\n".join([*lines, "They are left out: data.on_invalid=skip."]))
        return frame.select([i for i in range(len(frame)) if i not in broken])

    def _messages(self, row: Row) -> list[dict[str, object]]:
        """Chat messages with images as encoded data URIs.

        They travel through worker processes and Ray to the agent loop: encoded they are a fraction of the
        decoded picture's size, and any consumer of Qwen's message format reads them.
        """
        folder = self._place(row)[1]
        images = []
        for cell in cast("list[object]", row[self.image_key]):
            data = base64.b64encode(image_bytes(cell, folder)).decode("ascii")
            images.append({"image": f"{_URI}{data}", **self.pixel_bounds})
        return self._build_messages({"prompt": self._prompt(row), self.image_key: images}, key="prompt")

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

    def _prompt(self, row: Row) -> list[dict[str, object]]:
        """Messages whose text still has its `<image>` tags. Raises ValueError as `render`."""
        problem = row.get(self.problem_key)
        if problem is None:
            prompt = cast("list[dict[str, object]]", row[self.prompt_key])
            return [{"role": m["role"], "content": m["content"]} for m in prompt]
        content = render(str(problem), _task_of(row, str(problem)), self.prompt_template)
        return [{"role": "user", "content": content}]

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One row as veRL's trainer and reward loop take it; nothing else of the file goes along."""
        row = cast(Row, self.dataframe[item])
        text, answer = self._text_and_answer(row)
        task = _task_of(row, str(text))
        name, _, number = self._place(row)
        given = row.get("extra_info")
        extra = {k: v for k, v in given.items() if v is not None} if isinstance(given, Mapping) else {}
        extra_info = {
            "scene": row.get("scene") or "",
            "source_id": row.get("source_id") or "",
            "row_id": row.get("id") or f"{Path(name).name}:{number}",
            **extra,
            "task": task.value if task else "",
            "options": parse_options(str(text)),
            "index": row[_ROW],
        }
        fallback = task.data_source if task else "tpru/unrecognised"
        result = {
            "raw_prompt": self._messages(row),
            "data_source": row.get("data_source") or fallback,
            "reward_model": {"style": "rule", "ground_truth": str(answer).strip()},
            "extra_info": extra_info,
            "index": row[_ROW],
            "tools_kwargs": extra.get("tools_kwargs", {}),
            "interaction_kwargs": extra.get("interaction_kwargs", {}),
            # veRL builds its batches around at least one tensor.
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        }
        if row.get("agent_name"):
            result["agent_name"] = row["agent_name"]
        return result


def _load(part: Part) -> datasets.Dataset:
    """The part's rows on disk, as veRL keeps them. Raises ValueError."""
    path = part.path
    if path is None:
        return cast(datasets.Dataset, part.hub)
    if path.suffix not in KINDS:
        found = path.suffix or "no suffix"
        raise ValueError(
            f"{path}: found {found!r}, expected {', '.join(KINDS)}; or what `tpru data prepare` writes"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: found an empty file, expected rows")
    try:
        if path.suffix == ".parquet" and read_metadata(path).num_rows == 0:
            return datasets.Dataset.from_dict({name: [] for name in read_schema(path).names})
        loaded = datasets.load_dataset(KINDS[path.suffix], data_files=str(path), split="train")
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path}: not readable as {KINDS[path.suffix]}: {line_of(cause)}") from error
    return undecoded(cast(datasets.Dataset, loaded))


def _given_task(row: Row) -> str:
    extra = row.get("extra_info")
    return str(row.get("task") or (extra.get("task") if isinstance(extra, Mapping) else None) or "")


def _task_of(row: Row, text: str) -> Task | None:
    given = _given_task(row)
    return Task(given) if given else recognise_task(text)


def _patch_and_factor(processor: ProcessorMixin) -> tuple[int, int]:
    """Sides, in pixels, of a patch and of a visual token (merged patches)."""
    own = getattr(processor, "image_processor", None)
    patch = int(getattr(own, "patch_size", 14))
    return patch, patch * int(getattr(own, "merge_size", 2))


def _pixel_bounds(config: DictConfig, processor: ProcessorMixin) -> dict[str, int]:
    """`min_pixels` and `max_pixels` as far as `data` sets them. Raises ValueError for what cannot hold.

    qwen_vl_utils resizes to these; the model's processor then resizes to its own bounds once more, in the
    trainer and in vLLM, so bounds outside of the processor's would be promised and not kept.
    """
    values = {key: config.get(key) for key in ("min_pixels", "max_pixels")}
    bounds = {key: int(value) for key, value in values.items() if value is not None}
    token = _patch_and_factor(processor)[1] ** 2
    for key, value in bounds.items():
        if value < token:
            raise ValueError(f"data.{key}: found {value}, expected {token} (one visual token) or more")
    low, high = bounds.get("min_pixels"), bounds.get("max_pixels")
    if low is not None and high is not None and low > high:
        raise ValueError(f"data.min_pixels: found {low}, expected at most data.max_pixels={high}")
    size = getattr(getattr(processor, "image_processor", None), "size", None)
    told = config.get("mm_processor_kwargs") or {}  # what veRL and vLLM hand to the processor
    least = told.get("min_pixels") or _edge(size, "shortest_edge")
    most = told.get("max_pixels") or _edge(size, "longest_edge")
    if (least and high and high < least) or (most and low and low > most):
        raise ValueError(
            f"data.min_pixels, data.max_pixels: found {low} to {high}, expected bounds that meet {least} to "
            f"{most} of the model's processor, which resizes once more; move them, or set its own in "
            "data.mm_processor_kwargs.min_pixels and .max_pixels"
        )
    if (least and low and low < least) or (most and high and high > most):
        logger.warning(
            "data.min_pixels..max_pixels=%s..%s: the processor's own %s..%s hold", low, high, least, most
        )
    return bounds


def _opened(item: dict[str, object]) -> dict[str, object]:
    """A message's item with its picture opened, where that is one of ours."""
    image = item.get("image")
    if not isinstance(image, str) or not image.startswith(_URI):
        return item
    return {**item, "image": Image.open(io.BytesIO(base64.b64decode(image[len(_URI) :])))}


def _edge(size: object, key: str) -> int | None:
    value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
    return int(value) if value else None
