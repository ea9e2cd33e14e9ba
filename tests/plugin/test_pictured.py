"""Validation answers with pictures in wandb, TensorBoard and trackio, through veRL's own loggers."""

import base64
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl")
import torch
from omegaconf import OmegaConf
from PIL import Image
from support.rows import picture
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils
from verl.utils.tracking import ValidationGenerationsLogger

from tpru_verl.plugin import pictured

ROWS = 6


@cache
def chat(row: int) -> list[dict[str, Any]]:
    """A row of `TPRUDataset` with two pictures."""
    uris = [
        f"data:image;base64,{base64.b64encode(picture(10 * row + i, (400, 300))).decode()}" for i in range(2)
    ]
    items = [{"type": "image", "image": uri} for uri in uris]
    return [{"role": "user", "content": [*items, {"type": "text", "text": "Which is next?"}]}]


def batch(rows: range) -> Any:
    columns = {
        "raw_prompt": [chat(row) for row in rows],
        "uid": [f"uid{row}" for row in rows],
        "extra_info": [{"row_id": f"row{row}"} for row in rows],
    }
    cells: dict[str, Any] = {name: np.empty(len(rows), dtype=object) for name in columns}
    for name, values in columns.items():
        cells[name][:] = values
    found = tensordict_utils.get_tensordict({**cells, "dummy_tensor": torch.zeros(len(rows), 1)})
    tensordict_utils.assign_non_tensor_data(found, "validate", True)
    return found


class Trainer:
    """Two batches of a validation with two answers a row, then veRL's own logging."""

    _maybe_log_val_generations = trainer_base.PPOTrainer._maybe_log_val_generations

    def __init__(self, loggers: list[str], most: int) -> None:
        self.config = OmegaConf.create({"trainer": {"logger": loggers, "log_val_generations": most}})
        self.validation_generations_logger = ValidationGenerationsLogger("project", "experiment")
        self.global_steps = 7
        self.updates = 0

    def fit(self, manager: Any) -> None:
        for rows in (range(4), range(4, ROWS)):
            manager.generate_sequences(batch(rows))
        order = [row for row in reversed(range(ROWS)) for _ in range(2)]
        answers = [f"answer {sample} to {row}" for sample, row in enumerate(order)]
        self._maybe_log_val_generations(
            inputs=["Which is next?"] * len(order), outputs=answers, scores=[0.5] * len(order)
        )
        self._val_metrics_update([], [f"uid{row}" for row in order], {}, [])

    def _val_metrics_update(self, *_: Any) -> None:
        self.updates += 1


def validate(loggers: list[str], most: int) -> None:
    patched = type("Patched", (Trainer,), dict(Trainer.__dict__))
    pictured.validation_pictures(SimpleNamespace(PPOTrainer=patched))  # type: ignore[arg-type]
    trainer = patched(loggers, most)
    for _ in range(2):  # the same rows each time
        trainer.fit(SimpleNamespace(generate_sequences=lambda prompts: None))
    assert trainer.updates == 2


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (3, 3), (50, ROWS)])
def test_tensorboard_gets_the_pictures_of_a_row_side_by_side(
    most: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    validate(["console", "tensorboard"], most)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith(pictured.NAME)]
    assert len(tags) == expected
    for tag in tags:
        image = events.Images(tag)[0]
        assert (image.width, image.height) == (2 * pictured.SIDE + pictured.GAP, 168)
        text = events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        row = text.split("**")[1].removeprefix("row")
        assert f"to {row}\n" in text  # the answer is one to the row whose pictures these are


def test_wandb_gets_a_table_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the table says "Image"; the pictures are in the artifact that wandb sends with it."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.init(project="project", mode="offline")
    validate(["wandb"], 3)
    wandb.finish()
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("pictures*.table.json")]
    assert tables
    assert tables[0]["columns"] == ["row", "pictures", "prompt", "answer", "score"]
    assert len(tables[0]["data"]) == 3
    for row, _, prompt, answer, score in tables[0]["data"]:
        assert answer.endswith(f"to {row.removeprefix('row')}")
        assert (prompt, score) == ("Which is next?", 0.5)
    staged = [path for path in (tmp_path / "artifacts" / "staging").iterdir() if path.is_file()]
    pictures = [path for path in staged if path.read_bytes().startswith(b"\x89PNG")]
    assert pictures
    for path in pictures:
        assert Image.open(path).size == (2 * pictured.SIDE + pictured.GAP, 168)


def test_trackio_gets_traces_with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """trackio asks for a huggingface_hub that transformers refuses, so a stand-in keeps what it is given."""
    sent: list[dict] = []
    stand_in = SimpleNamespace(
        Image=lambda image: image,
        Trace=lambda messages, metadata: SimpleNamespace(messages=messages, metadata=metadata),
        log=lambda data, step: sent.append({"step": step, **data}),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)  # type: ignore[arg-type]
    validate(["trackio"], 2)
    traces = [found[pictured.NAME] for found in sent if pictured.NAME in found]
    assert [len(found) for found in traces] == [2, 2]
    content = traces[0][0].messages[0]["content"]
    assert isinstance(content[0], Image.Image)
    assert content[1] == {"type": "text", "text": "Which is next?"}
    assert traces[0][0].messages[1]["content"].endswith(traces[0][0].metadata["row"].removeprefix("row"))


def test_a_logger_that_fails_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setitem(pictured._LOGGERS, "wandb", refuse)
    monkeypatch.setattr(ValidationGenerationsLogger, "log_generations_to_wandb", lambda *_: None)
    monkeypatch.setattr(pictured.logger, "propagate", True)
    validate(["wandb"], 2)
    assert "without pictures: OSError: no network" in caplog.text


def test_loggers_that_take_no_pictures_have_none_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictured, "_pictures_of", lambda prompts: pytest.fail("read"))
    validate(["console", "file"], 4)


def test_the_patch_is_applied_to_verls_own_class() -> None:
    for name in ("_maybe_log_val_generations", "_val_metrics_update"):
        assert getattr(trainer_base.PPOTrainer, name).__module__ == "tpru_verl.plugin.pictured", name
