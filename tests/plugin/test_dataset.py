"""TPRUDataset through veRL's own functions: factory, sampler, collate function, data loader."""

import asyncio
import io
import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tpru_verl.reward_fns.verl import compute_score
from tpru_verl.sample import NONE_OPTION, Task

pytest.importorskip("verl")
from omegaconf import DictConfig, OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizer, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.tensordict_utils import get_tensordict

from tpru_verl.data.source import hub, parts
from tpru_verl.plugin import dataset as module
from tpru_verl.plugin.dataset import TPRUDataset

Cell = dict[str, object]
Build = Callable[..., TPRUDataset]


def png(width: int = 64, height: int = 48, colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (colour % 256, 20, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def cell(data: bytes | None = None, path: str | None = None) -> Cell:
    return {"bytes": data, "path": path}


def published(i: int) -> dict[str, Any]:
    """A row of the published form; the three tasks take turns."""
    turn = i % 3
    if turn == 0:
        problem = (
            "These photos show a tower. Below are 4 images in random order, labelled 1-4. What is the "
            "correct sequence?\n1: <image> 2: <image> 3: <image> 4: <image>\nA. 1 3 4 2\nB. 4 2 3 1\n"
            f"C. 1 2 3 4\nD. 2 1 4 3\nE. {NONE_OPTION}"
        )
        images = 4
    else:
        steps, asked = ((1, 2, 4), 3) if turn == 1 else ((2, 3, 4), 1)
        given = " ".join(f"Step {s}: <image>" for s in steps)
        problem = (
            f"{given} Which image is step {asked}?\nA. <image>\nB. <image>\nC. {NONE_OPTION}\nD. <image>"
        )
        images = 6
    return {
        "problem": problem,
        "answer": "B",
        "images": [cell(png(64 + i, 48, i + k)) for k in range(images)],
    }


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.fixture(scope="session")
def processor(checkpoint: Path) -> ProcessorMixin:
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizer:
    return AutoTokenizer.from_pretrained(checkpoint)


def settings(**changes: object) -> DictConfig:
    base = {
        "custom_cls": {"path": "pkg://tpru_verl.plugin.dataset", "name": "TPRUDataset"},
        "prompt_key": "prompt",
        "image_key": "images",
        "prompt_template": "bare",
        "max_prompt_length": 512,
        "filter_overlong_prompts": True,
        "filter_overlong_prompts_workers": 1,
        "min_pixels": 3136,
        "max_pixels": 3136,
        "shuffle": True,
        "seed": 3,
    }
    return OmegaConf.create({**base, **changes})


@pytest.fixture
def build(
    processor: ProcessorMixin,
    tokenizer: PreTrainedTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Build:
    """Builds the data set as veRL's trainer does."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(files: object, max_samples: int = -1, **changes: object) -> TPRUDataset:
        files = [str(f) for f in files] if isinstance(files, list) else str(files)
        data = create_rl_dataset(files, settings(**changes), tokenizer, processor, max_samples=max_samples)
        assert isinstance(data, TPRUDataset)
        return data

    return make


def test_items_have_what_the_trainer_and_the_reward_loop_read(build: Build, tmp_path: Path) -> None:
    data = build(write(tmp_path / "rows.parquet", [published(i) for i in range(6)]))
    assert isinstance(data, TPRUDataset)
    assert len(data) == 6
    for i, task in enumerate([*Task, *Task]):
        item = data[i]
        assert item["data_source"] == task.data_source
        assert item["reward_model"] == {"style": "rule", "ground_truth": "B"}
        assert item["index"] == i
        extra = item["extra_info"]
        assert (extra["task"], extra["index"], extra["row_id"]) == (task.value, i, f"rows.parquet:{i}")
        assert NONE_OPTION in extra["options"].values()
        (message,) = item["raw_prompt"]
        images = [part for part in message["content"] if part["type"] == "image"]
        assert message["role"] == "user"
        assert len(images) == (4 if i % 3 == 0 else 6)
        assert all((part["min_pixels"], part["max_pixels"]) == (3136, 3136) for part in images)


def test_a_row_with_more_images_than_vllm_takes_is_refused_or_left_out(
    build: Build, tmp_path: Path, tokenizer: PreTrainedTokenizer, processor: ProcessorMixin
) -> None:
    file = str(write(tmp_path / "rows.parquet", [published(i) for i in range(6)]))
    assert len(build(file)) == 6  # settings of no run

    def of_run(limit: int, **changes: object) -> int:
        run = {"data": settings(**changes), "actor_rollout_ref": {"rollout": {"limit_images": limit}}}
        rows: Any = create_rl_dataset(file, OmegaConf.create(run).data, tokenizer, processor)
        return len(rows)

    assert (of_run(6), of_run(0), of_run(4, on_invalid="skip")) == (6, 6, 2)
    with pytest.raises(ValueError, match=r"4 of 6 rows are broken") as told:
        of_run(4)
    row = "rows.parquet row 1: images: found 6 images, expected 4 or fewer"
    assert f"{row}; set actor_rollout_ref.rollout.limit_images=6" in str(told.value)


def test_template_of_the_task_is_rendered_around_the_problem(build: Build, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.parquet", [published(i) for i in range(3)])
    data = build(rows, prompt_template="tpru", max_prompt_length=4096)
    text = "".join(part.get("text", "<image>") for part in data[1]["raw_prompt"][0]["content"])
    assert text.startswith(str(published(1)["problem"]))
    assert "missing next step" in text
    assert "<answer>" in text


def test_through_verls_loader_with_sampler_resume_and_tensordict(build: Build, tmp_path: Path) -> None:
    data = build(write(tmp_path / "rows.parquet", [published(i) for i in range(8)]))

    def loader() -> StatefulDataLoader:
        sampler = create_rl_sampler(settings(), data)
        return StatefulDataLoader(data, batch_size=2, collate_fn=collate_fn, sampler=sampler, drop_last=True)

    def order(batches: list[dict]) -> list[int]:
        return [int(i) for batch in batches for i in batch["index"]]

    whole = order(list(loader()))
    assert sorted(whole) == list(range(8))
    first = loader()
    batches = iter(first)
    seen = order([next(batches), next(batches)])
    rest = loader()
    rest.load_state_dict(first.state_dict())
    assert seen + order(list(rest)) == whole
    batch = get_tensordict(next(iter(loader())))
    assert len(batch) == 2
    infos = list(cast("Iterable[dict[str, str]]", batch["extra_info"]))
    assert {info["task"] for info in infos} <= {task.value for task in Task}


def test_worker_processes_give_the_same_items(build: Build, tmp_path: Path) -> None:
    data = build(write(tmp_path / "rows.parquet", [published(i) for i in range(4)]))
    loader = StatefulDataLoader(data, batch_size=2, collate_fn=collate_fn, num_workers=1)
    assert [item for batch in loader for item in batch["raw_prompt"]] == [
        data[i]["raw_prompt"] for i in range(4)
    ]


def test_state_leaves_the_rows_out_and_reads_them_again(build: Build, tmp_path: Path) -> None:
    data = build(write(tmp_path / "rows.parquet", [published(i) for i in range(4)]))
    state = pickle.dumps(data)
    assert len(state) < 2_000_000
    again = pickle.loads(state)
    assert not hasattr(again, "dataframe")
    again.resume_dataset_state()
    assert [again[i]["raw_prompt"] for i in range(4)] == [data[i]["raw_prompt"] for i in range(4)]


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (30, 400), (56, 56), (1200, 90)])
@pytest.mark.parametrize("bounds", [(3136, 36864), (16384, 36864)])
def test_pixel_bounds_give_the_size_of_qwens_processor(
    build: Build,
    processor: ProcessorMixin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    bounds: tuple[int, int],
) -> None:
    low, high = bounds
    monkeypatch.setattr(processor.image_processor, "size", {"shortest_edge": 3136, "longest_edge": 12845056})
    rows = [published(0) | {"images": [cell(png(*size))] * 4}]
    data = build(
        write(tmp_path / "rows.parquet", rows), min_pixels=low, max_pixels=high, max_prompt_length=9999
    )
    messages = data[0]["raw_prompt"]
    images, _, _ = asyncio.run(TPRUDataset.process_multi_modal_info(messages, 14, data.config))
    height, width = smart_resize(size[1], size[0], 28, low, high)
    assert {image.size for image in images} == {(width, height)}
    # And the processor, which resizes once more in the agent loop and in vLLM, leaves it alone.
    grid = processor.image_processor(images=images, return_tensors="pt")["image_grid_thw"]
    assert grid.tolist() == [[1, height // 14, width // 14]] * 4


def test_fewer_rows_than_a_batch_are_told_where_the_launcher_could_not_count(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of the Hub, and a draw of a few: veRL divides by its zero steps."""
    file = write(tmp_path / "rows.parquet", [published(i) for i in range(6)])
    trains = {"train_files": str(file), "train_batch_size": 4}
    assert len(build(file, **trains)) == 6
    told = "expected 4 or more, one batch"
    assert told not in caplog.text
    build(file, max_samples=3, train_max_samples=3, **trains)
    assert told in caplog.text
    caplog.clear()
    assert len(build(file, max_samples=3, **trains)) == 3  # validation on some of the same rows
    assert len(build(file, **{**trains, "train_files": "other.parquet", "train_batch_size": 9})) == 6
    assert "one batch" not in caplog.text


def test_bounds_told_to_the_processor_hold_instead_of_its_own(build: Build, tmp_path: Path) -> None:
    """For a model whose own bounds lie elsewhere (Qwen3-VL's begin at 65,536 pixels)."""
    file = write(tmp_path / "rows.parquet", [published(0)])
    bounds = {"min_pixels": 16384, "max_pixels": 36864}
    with pytest.raises(ValueError, match="expected bounds that meet 3136 to 3136"):
        build(file, **bounds)
    assert len(build(file, **bounds, mm_processor_kwargs=bounds, max_prompt_length=999)) == 1
    with pytest.raises(ValueError, match=r"none fits") as small:
        build(file, max_prompt_length=9)
    with pytest.raises(ValueError, match=r"none fits") as large:
        build(file, **bounds, mm_processor_kwargs=bounds, max_prompt_length=9)
    tokens = [int(re.findall(r"to (\d+) tokens", str(e.value))[0]) for e in (small, large)]
    height, width = smart_resize(48, 64, 28, **bounds)
    assert tokens[1] - tokens[0] == 4 * (height * width // 784 - 4)


def test_jsonl_with_paths_beside_the_file(build: Build, tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        row = published(i)
        names = [f"{i}_{k}.png" for k in range(len(row["images"]))]
        for name, image in zip(names, row["images"], strict=True):
            (tmp_path / name).write_bytes(image["bytes"])
        rows.append(row | {"images": names})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert len(build(file)) == 3


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_paths_outside_of_the_folder_are_refused(build: Build, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    rows = [published(0) | {"images": [cell(path=name)] * 4}]
    with pytest.raises(ValueError, match="expected a path inside"):
        build(write(tmp_path / "data" / "rows.parquet", rows))


def test_folder_of_shards_beside_a_readme(build: Build, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [published(i) for i in range(2)])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [published(i) for i in range(2, 5)])
    data = build(tmp_path)
    assert [data[i]["extra_info"]["row_id"] for i in (1, 2)] == [
        "train-00000-of-00002.parquet:1",
        "train-00001-of-00002.parquet:0",
    ]


def test_splits_are_never_mixed(build: Build, tmp_path: Path) -> None:
    write(tmp_path / "train-00000.parquet", [published(i) for i in range(3)])
    write(tmp_path / "test-00000.parquet", [published(i) for i in range(2)])
    with pytest.raises(ValueError, match=r"several splits, expected one.*@test, @train"):
        build(tmp_path)
    assert len(build(f"{tmp_path}@test")) == 2
    assert len(build([f"{tmp_path}@test", f"{tmp_path}@train"])) == 5
    with pytest.raises(FileNotFoundError, match="@dev"):
        build(f"{tmp_path}@dev")


def test_hub_layout_and_its_splits(build: Build, tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.parquet", [published(i) for i in range(3)])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [published(i) for i in range(2)])
    assert len(hub.load_hub(str(tmp_path), "test")) == 2
    with pytest.raises(ValueError, match=r"expected one of its splits: .*@test"):
        hub.load_hub(str(tmp_path))
    with pytest.raises(ValueError, match="@dev: expected one of its splits"):
        hub.load_hub(str(tmp_path), "dev")


def test_hub_id_goes_to_the_hub(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [published(i) for i in range(2)])
    rows = hub.load_hub(str(tmp_path))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(parts, "load_hub", lambda name, split, revision: asked.append((name, split)) or rows)
    assert len(build("org/TPRU-test@test")) == 2
    assert asked == [("org/TPRU-test", "test")]


def test_hub_that_does_not_answer(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, config: str | None, revision: str | None) -> list[str]:
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(module.datasets, "get_dataset_split_names", offline)
    with pytest.raises(ValueError, match=r"^org/name: no file or folder.* from the Hub: no route$"):
        build("org/name")


def test_verls_own_form(build: Build, tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        row = published(i)
        rows.append(
            {
                "data_source": "mine" if i == 0 else None,
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": row["problem"]},
                ],
                "images": row["images"],
                "reward_model": {"style": "rule", "ground_truth": "B"},
                "extra_info": {"index": 77, "note": "kept", "nothing": None},
                "ability": "not ours",
            }
        )
    data = build(write(tmp_path / "rows.parquet", rows))
    items = [data[i] for i in range(3)]
    assert [m["role"] for m in items[0]["raw_prompt"]] == ["system", "user"]
    assert [item["data_source"] for item in items] == ["mine", *(task.data_source for task in list(Task)[1:])]
    assert items[2]["reward_model"]["ground_truth"] == "B"
    assert items[2]["extra_info"]["note"] == "kept"
    assert "nothing" not in items[2]["extra_info"]
    assert (items[2]["index"], items[2]["extra_info"]["index"]) == (2, 2)
    assert "ability" not in items[0]


def test_large_row_groups_are_read_in_pieces(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "rows.parquet", [published(i) for i in range(70)])
    whole = build(file)
    monkeypatch.setattr(hub, "WHOLE_GROUP", 0)
    monkeypatch.setattr(module.datasets, "load_dataset", lambda *_, **__: pytest.fail("read as a whole"))
    for _ in range(2):  # and from the cache
        pieces = build(file)
        assert [pieces[i]["raw_prompt"] for i in range(70)] == [whole[i]["raw_prompt"] for i in range(70)]
    write(file, [published(0)])
    assert len(build(file)) == 1


def test_image_feature_of_datasets_is_read_as_bytes(build: Build, tmp_path: Path) -> None:
    datasets = module.datasets
    features = datasets.Features(
        {
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = datasets.Dataset.from_list([published(i) for i in range(3)], features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    data = build(tmp_path / "rows.parquet")
    assert data[1]["raw_prompt"][0]["content"][1]["image"].startswith("data:image;base64,iVBOR")


BROKEN = {
    "answer: found 'Z', expected one of A, B, C, D": {"answer": "Z"},
    "answer: found None": {"answer": None},
    "problem: found ''": {"problem": ""},
    "images: found 3, expected 4, one for each <image> tag": {"images": [cell(png())] * 3},
    r"images\[0\]: found bytes that no image reader takes": {"images": [cell(b"not a png")] * 4},
    r"images\[0\]: found 0 bytes": {"images": [cell(b"")] * 4},
    r"images\[0\]: found NoneType, expected bytes": {"images": [cell()] * 4},
    r"images\[0\]: found 2000 x 8 pixels, expected sides within 1 : 200": {
        "images": [cell(png(2000, 8))] * 4
    },
    r"images\[0\]: found over 67108864 pixels": {"images": "bomb"},
    "task: found 'jigsaw', expected one of temporal_reordering": {"task": "jigsaw"},
}


def bomb() -> bytes:
    """A PNG whose header claims 90000 x 9000 pixels."""
    import struct
    import zlib

    header = struct.pack(">II5B", 90000, 9000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR" + header), b"IDAT"]
    ends = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_row_stops_the_start_and_is_named(build: Build, tmp_path: Path, reason: str) -> None:
    change = BROKEN[reason]
    if change.get("images") == "bomb":
        change = {"images": [cell(bomb())] * 4}
    rows = [published(0) | {"task": None}, published(0) | {"task": None} | change]
    file = write(tmp_path / "rows.parquet", [*rows, published(0) | {"task": "temporal_reordering"}])
    with pytest.raises(ValueError, match=rf"(?s)^1 of 3 rows are broken.*rows.parquet row 1: ({reason})"):
        build(file)
    data = build(file, on_invalid="skip")
    assert [data[i]["index"] for i in range(len(data))] == [0, 2]


def test_broken_rows_are_listed_up_to_ten_and_counted(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [published(i) | ({"answer": "Z"} if i < 12 else {}) for i in range(15)]
    file = write(tmp_path / "rows.parquet", rows)
    with pytest.raises(
        ValueError, match=r"(?s)12 of 15 rows.*row 9: .*and 2 more.*data.on_invalid=skip"
    ) as info:
        build(file)
    assert "row 10:" not in str(info.value)
    assert len(build(file, on_invalid="skip")) == 3
    assert "12 of 15 rows are broken" in caplog.text


def test_truncated_image_is_a_broken_row_not_a_long_one(build: Build, tmp_path: Path) -> None:
    noise = Image.effect_noise((200, 200), 90)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    half = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    file = write(tmp_path / "rows.parquet", [published(0), published(0) | {"images": [cell(half)] * 4}])
    with pytest.raises(
        ValueError, match=r"(?s)1 of 2 rows are broken.*can't be decoded .image file is truncated"
    ):
        build(file)
    assert len(build(file, on_invalid="skip")) == 1


def test_long_prompts_are_left_out_counted_and_named(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        published(0),
        published(0) | {"problem": "long " * 900 + str(published(0)["problem"])},
        published(0),
    ]
    file = write(tmp_path / "rows.parquet", rows)
    data = build(file)
    assert [data[i]["index"] for i in range(len(data))] == [0, 2]
    assert "1 of 3 rows are longer than data.max_prompt_length=512 tokens" in caplog.text
    assert "row 1 (" in caplog.text
    assert len(build(file, filter_overlong_prompts=False)) == 3
    with pytest.raises(ValueError, match=r"data.max_prompt_length=8: found \d+ to \d+ tokens in all 3 rows"):
        build(file, max_prompt_length=8)


def test_filter_in_worker_processes_counts_the_same(build: Build, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.parquet", [published(i % 6) for i in range(300)])
    one, two = build(file), build(file, filter_overlong_prompts_workers=2)
    assert len(one) == len(two) == 300


@pytest.mark.parametrize("opens", [True, False])
def test_rows_tell_the_reward_whether_the_chat_template_opens_the_reasoning(
    opens: bool, build: Build, processor: ProcessorMixin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if opens:
        monkeypatch.setattr(processor, "chat_template", f"{processor.chat_template}<think>\n")
    info = build(write(tmp_path / "rows.parquet", [published(0)]))[0]["extra_info"]
    earned = compute_score("", "x</think><answer>B</answer>", "B", info)
    assert (earned["acc"], earned["format"]) == (1.0, float(opens))


def test_counted_tokens_are_those_of_the_prompt(
    build: Build, processor: ProcessorMixin, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.parquet", [published(0)])
    data = build(file)
    messages = data[0]["raw_prompt"]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images, _, _ = asyncio.run(TPRUDataset.process_multi_modal_info(messages, 14, data.config))
    length = len(processor(text=[text], images=images)["input_ids"][0])
    assert len(build(file, max_prompt_length=length)) == 1
    with pytest.raises(ValueError, match=f"found {length} to {length} tokens"):
        build(file, max_prompt_length=length - 1)


def test_max_samples_keeps_the_rows_names(build: Build, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.parquet", [published(i) for i in range(9)])
    some = build(file, max_samples=4)
    indices = [some[i]["index"] for i in range(len(some))]
    assert len(set(indices)) == 4
    assert indices == [build(file, max_samples=4)[i]["index"] for i in range(4)]
    assert [some[i]["extra_info"]["row_id"] for i in range(4)] == [f"rows.parquet:{i}" for i in indices]
    first = build(file, max_samples=4, shuffle=False)
    assert [first[i]["index"] for i in range(4)] == [0, 1, 2, 3]


def test_unrecognised_text_trains_under_its_own_name(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [published(0), published(1) | {"problem": "<image> Which?\nA. <image>\nB. <image>", "answer": "A"}]
    rows[1]["images"] = [cell(png())] * 3
    data = build(write(tmp_path / "rows.parquet", rows))
    assert data[1]["data_source"] == "tpru/unrecognised"
    assert "1 of 2 rows: the text does not say" in caplog.text


def test_files_that_cannot_be_read_say_why(build: Build, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        build(tmp_path / "missing.parquet")
    with pytest.raises(ValueError, match=r"data.train_files or data.val_files is not set"):
        build([])
    (tmp_path / "void").mkdir()
    with pytest.raises(FileNotFoundError, match="found no file that ends in"):
        build(tmp_path / "void")
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"found '.csv', expected .parquet"):
        build(tmp_path / "rows.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing more")
    with pytest.raises(ValueError, match=r"bad.parquet: not readable as parquet"):
        build(tmp_path / "bad.parquet")
    (tmp_path / "zero.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"zero.parquet: found an empty file"):
        build(tmp_path / "zero.parquet")
    schema = pa.Table.from_pylist([published(0)]).schema
    pq.write_table(schema.empty_table(), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none.parquet: found 0 rows"):
        build(tmp_path / "none.parquet")
    write(tmp_path / "other.parquet", [{"question": "?", "label": "A"}])
    with pytest.raises(
        ValueError, match="found columns question, label; expected problem, answer, images, or veRL's"
    ):
        build(tmp_path / "other.parquet")
    renamed = [{"question": row.pop("problem"), **row} for row in [published(0)]]
    assert len(build(write(tmp_path / "renamed.parquet", renamed), problem_key="question")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_pixels": 5000, "max_pixels": 4000}, "expected at most data.max_pixels=4000"),
        ({"min_pixels": None, "max_pixels": 100}, "data.max_pixels: found 100, expected 784"),
        ({"min_pixels": 16384, "max_pixels": 36864}, "expected bounds that meet 3136 to 3136"),
        ({"on_invalid": "drop"}, "data.on_invalid: found 'drop', expected error or skip"),
    ],
)
def test_settings_that_cannot_hold(
    build: Build, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    file = write(tmp_path / "rows.parquet", [published(0)])
    with pytest.raises(ValueError, match=message):
        build(file, **changes)


def test_template_that_loses_the_images(build: Build, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("Answer at once.")
    with pytest.raises(ValueError, match="found 0 <image> tags in the prompt, expected 4"):
        build(write(tmp_path / "rows.parquet", [published(0)]), prompt_template=str(template))
    with pytest.raises(FileNotFoundError, match="prompt_template: found 'nice'"):
        build(tmp_path / "rows.parquet", prompt_template="nice")


def test_a_model_without_a_processor_that_verl_knows_is_refused_by_name(
    tokenizer: PreTrainedTokenizer, tmp_path: Path
) -> None:
    """veRL hands over no processor, and its warning says no more."""
    import transformers

    rows = str(write(tmp_path / "rows.parquet", [published(0)]))

    def refusal(folder: Path) -> str:
        model = transformers.AutoTokenizer.from_pretrained(folder)
        with pytest.raises(ValueError, match=r"^actor_rollout_ref\.model\.path: ") as error:
            create_rl_dataset(rows, settings(), model, None)
        return str(error.value)

    tokenizer.save_pretrained(tmp_path / "text")
    transformers.Qwen2Config().save_pretrained(tmp_path / "text")
    assert "its processor cannot be loaded (OSError: " in refusal(tmp_path / "text")
    named = tmp_path / "text/tokenizer_config.json"
    cells = json.loads(named.read_text())
    del cells["processor_class"]
    named.write_text(json.dumps(cells))
    assert refusal(tmp_path / "text").endswith("and no processor, expected a model for images")
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    special = dict(zip(names, ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"), strict=True))
    intern = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path, extra_special_tokens=special)
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(), intern, transformers.InternVLVideoProcessor()
    )
    processor.save_pretrained(tmp_path / "intern")
    transformers.InternVLConfig().save_pretrained(tmp_path / "intern")
    assert "found InternVLProcessor, expected a processor that veRL" in refusal(tmp_path / "intern")


def test_a_chat_template_that_loses_the_images_is_refused(
    build: Build, processor: ProcessorMixin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(ValueError, match="chat template of Qwen2_5_VLProcessor leaves images out"):
        build(write(tmp_path / "rows.parquet", [published(0)]))
