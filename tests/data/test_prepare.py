"""`tpru data prepare`: the images' own bytes, in a form that both frameworks read; whole or not at all."""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from support.commands import Tpru
from support.results import contents, read
from support.rows import Row, picture, reordering, write_parquet

from tpru_verl.data import layout
from tpru_verl.data.frameworks import FRAMEWORKS
from tpru_verl.data.prepare import PrepareOptions, prepare
from tpru_verl.data.source.forms import Source

ROWS = [reordering(seed) for seed in range(12)]
Prepare = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Prepare:
    def run(rows: list[Row] = ROWS, out: str = "out", **options: Any) -> dict[str, Any]:
        path = write_parquet(tmp_path / "rows.parquet", rows)
        return prepare(Source.open(str(path)), tmp_path / out, PrepareOptions(**options), workers=1)

    return run


def test_rows_keep_their_bytes_and_gain_what_verl_reads(run: Prepare, tmp_path: Path) -> None:
    run([{**row, "scene": "kitchen", "source_id": f"film-{i}"} for i, row in enumerate(ROWS)])
    found = read(tmp_path / "out")
    assert [[cell["bytes"] for cell in row["images"]] for row in found] == [row["images"] for row in ROWS]
    first = found[0]
    assert (first["problem"], first["answer"]) == (ROWS[0]["problem"], "B")
    assert first["data_source"] == "tpru/temporal_reordering"
    assert first["reward_model"] == {"style": "rule", "ground_truth": "B"}
    assert first["prompt"][0]["content"].count("<image>") == 4
    assert first["extra_info"] == {
        "task": "temporal_reordering",
        "scene": "kitchen",
        "source_id": "film-0",
        "row_id": "rows.parquet:0",
        "problem": ROWS[0]["problem"],
        "index": 0,
    }


def test_a_result_is_a_source_whose_questions_are_the_first_ones(run: Prepare, tmp_path: Path) -> None:
    run()
    manifest = prepare(Source.open(str(tmp_path / "out")), tmp_path / "again", PrepareOptions(), workers=1)
    assert "published form" in manifest["source"]["read_as"][0]  # type: ignore[index]
    again, once = read(tmp_path / "again"), read(tmp_path / "out")
    assert [row["problem"] for row in again] == [row["problem"] for row in once]
    assert [row["prompt"] for row in again] == [row["prompt"] for row in once]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rows_for_a_framework_have_its_columns_and_are_a_source(
    framework: str, tpru: Tpru, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    tpru("prepare", path, tmp_path / "out", "--for", framework)
    first = read(tmp_path / "out")[0]
    assert [cell["bytes"] for cell in first["images"]] == ROWS[0]["images"]
    assert first["extra_info"]["task"] == "temporal_reordering"
    if framework == "trl":
        (message,) = first["prompt"]
        assert [part["type"] for part in message["content"]] == ["text", "image"] * 4 + ["text"]
        text = "".join(part["text"] or "<image>" for part in message["content"])
        assert text.startswith(ROWS[0]["problem"])
        assert first["answer"] == "B"
    elif framework == "ms-swift":
        assert {*first} == {"messages", "images", "solution", "extra_info"}
        assert first["messages"][0]["content"].startswith(ROWS[0]["problem"])
        assert first["solution"] == "B"
    code, said, _ = tpru("validate", tmp_path / "out")
    assert code == 0
    assert "12 rows, all usable" in said


def test_a_second_run_gives_the_same_bytes_and_replaces_the_first(run: Prepare, tmp_path: Path) -> None:
    run(split={"train": 0.75, "test": 0.25})
    first = contents(tmp_path / "out")
    run(split={"train": 0.75, "test": 0.25})
    assert contents(tmp_path / "out") == first
    run(split={"train": 0.75, "test": 0.25}, out="other")
    assert contents(tmp_path / "other") == first
    run(ROWS[:3])
    assert len(read(tmp_path / "out")) == 3
    assert not list((tmp_path / "out").glob("data/test-*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_manifest_says_what_was_read_written_and_left_out(run: Prepare, tmp_path: Path) -> None:
    manifest = run([{**row, "notes": "x"} for row in ROWS])
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    assert manifest["rows"]["tasks"] == {"temporal_reordering": 12}
    assert manifest["source"]["columns_left_out"] == ["notes"]
    (file,) = manifest["files"]
    data = (tmp_path / "out" / file["name"]).read_bytes()
    assert (file["rows"], file["bytes"]) == (12, len(data))
    assert file["xxh3_128"] == xxhash.xxh3_128_hexdigest(data)
    assert str(tmp_path) not in json.dumps(manifest)


def test_what_is_left_out_of_verls_rows_is_listed(run: Prepare, tmp_path: Path) -> None:
    extra = {"task": "temporal_reordering", "row_id": "r", "tools_kwargs": {"a": 1}, "level": 2}
    rows = [
        {
            "prompt": [{"role": "user", "content": row["problem"]}],
            "reward_model": {"style": "rule", "ground_truth": "B"},
            "images": row["images"],
            "agent_name": "tool_agent",
            "extra_info": extra | {"row_id": f"r{i}"},
        }
        for i, row in enumerate(ROWS[:3])
    ]
    left_out = run(rows)["source"]["columns_left_out"]
    assert left_out == ["agent_name", "extra_info.level", "extra_info.tools_kwargs"]
    again = prepare(Source.open(str(tmp_path / "out")), tmp_path / "again", PrepareOptions(), workers=1)
    assert not [name for name in again["source"]["columns_left_out"] if "." in name]  # type: ignore[attr-defined]


def test_rows_of_one_source_or_one_picture_stay_together(run: Prepare, tmp_path: Path) -> None:
    rows = [{**reordering(i), "source_id": f"film-{i % 8}"} for i in range(32)]
    rows[5]["images"] = [*rows[5]["images"][:3], rows[6]["images"][0]]  # joins films 5 and 6
    manifest = run(rows, split={"train": 0.75, "test": 0.25}, seed=3)
    films = {
        split: {row["extra_info"]["source_id"] for row in read(tmp_path / "out", split)}
        for split in ("train", "test")
    }
    assert films["train"] | films["test"] == {f"film-{i}" for i in range(8)}
    assert not films["train"] & films["test"]
    assert any({"film-5", "film-6"} <= side for side in films.values())
    assert manifest["files"][0]["rows"] + manifest["files"][1]["rows"] == 32
    assert 4 <= len(read(tmp_path / "out", "test")) <= 12
    run(rows, split={"train": 0.75, "test": 0.25}, seed=4, out="other")
    assert contents(tmp_path / "other") != contents(tmp_path / "out")


@pytest.mark.parametrize("split", [{"train": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.0, "b": 1.0}])
def test_shares_have_to_be_shares(run: Prepare, split: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected shares over 0 that sum to 1"):
        run(split=split)


@pytest.mark.parametrize("split", ["train=0.95", "train=1,a/b=0", "train"])
def test_shares_that_are_none_end_the_command_with_exit_code_2(
    tpru: Tpru, tmp_path: Path, split: str
) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    assert tpru("prepare", path, tmp_path / "new", "--split", split)[0] == 2
    assert not (tmp_path / "new").exists()


def test_a_split_that_stays_empty_is_refused(run: Prepare) -> None:
    cure = "a group stays in one split, so add sources, leave --split out, or use --allow"
    with pytest.raises(ValueError, match=rf"found 1 group of rows .* expected enough for .*; {cure}"):
        run([{**row, "source_id": "one film"} for row in ROWS], split={"train": 0.9, "test": 0.1})


def test_unusable_rows_stop_it_or_are_dropped_and_listed(run: Prepare, tmp_path: Path) -> None:
    rows = [*ROWS[:3], reordering(50, answer="Z"), reordering(51, images=[b"", *ROWS[0]["images"][1:]])]
    with pytest.raises(ValueError, match=r"2 of 5 rows are unusable\n.*row 3: answer.*\n.*row 4: images"):
        run(rows)
    assert not (tmp_path / "out").exists()
    assert run(rows, drop_invalid=True)["rows"]["dropped"] == 2
    assert len(read(tmp_path / "out")) == 3
    dropped = json.loads((tmp_path / "out/dropped.json").read_text())
    assert [finding["row"] for finding in dropped] == [3, 4]
    with pytest.raises(ValueError, match="found no usable row among 1"):
        run([reordering(answer="Z")], drop_invalid=True)


def test_what_lies_in_the_way_stays(run: Prepare, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="found other files, expected a new folder"):
        run()
    run(out="second")
    (tmp_path / "second/notes.txt").write_text("mine, too")
    with pytest.raises(FileExistsError, match=r"found notes\.txt beside an earlier result"):
        run(out="second")
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileExistsError, match="found a file"):
        run(out="file")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_end_in_the_middle_leaves_the_old_result(
    run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run(ROWS[:2])
    before = contents(tmp_path / "out")
    written = 0

    def stops(self: object, table: object) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise error

    monkeypatch.setattr(layout.Shards, "add", stops)
    with pytest.raises(type(error), match="no space left" if isinstance(error, OSError) else None):
        run()
    assert contents(tmp_path / "out") == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_shards_are_cut_by_size_and_named_by_count(
    run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(map(len, ROWS[0]["images"]))
    monkeypatch.setattr(layout, "GROUP_BYTES", size)
    monkeypatch.setattr(layout, "SHARD_BYTES", 3 * size)
    manifest = run()
    names = [file["name"] for file in manifest["files"]]
    assert len(names) > 2
    assert names == [f"data/train-{i:05d}-of-{len(names):05d}.parquet" for i in range(len(names))]
    assert [[cell["bytes"] for cell in row["images"]] for row in read(tmp_path / "out")] == [
        row["images"] for row in ROWS
    ]


def test_row_groups_are_small_and_pictures_are_not_compressed_again(run: Prepare, tmp_path: Path) -> None:
    run([reordering(i % 12) for i in range(150)])
    metadata = pq.read_metadata(tmp_path / "out/data/train-00000-of-00001.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [64, 64, 22]
    group = metadata.row_group(0)
    codecs = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert codecs.pop("images.list.element.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}


def test_datasets_reads_it_with_decoded_pictures_and_the_splits_of_the_card(
    run: Prepare, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    run(split={"train": 0.75, "test": 0.25})
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 9, "test": 3}
    image = loaded["test"][0]["images"][0]
    assert image.size == (40, 30)


def test_verl_trains_on_it_without_conversion(run: Prepare, tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from transformers import AutoProcessor
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from tpru_verl.plugin.dataset import TPRUDataset

    run()
    processor = AutoProcessor.from_pretrained(checkpoint)
    shard = str(tmp_path / "out/data/train-00000-of-00001.parquet")
    config = OmegaConf.create({"prompt_key": "prompt", "image_key": "images", "max_prompt_length": 4096})
    ours = TPRUDataset([shard], processor.tokenizer, config, processor)[0]
    stock = RLHFDataset([shard], processor.tokenizer, config, processor)[0]
    for item in (ours, stock):
        assert item["reward_model"]["ground_truth"] == "B"
        assert item["data_source"] == "tpru/temporal_reordering"
        kinds = [part["type"] for message in item["raw_prompt"] for part in message["content"]]
        assert kinds.count("image") == 4
    texts = [
        [part.get("text") for message in item["raw_prompt"] for part in message["content"]]
        for item in (ours, stock)
    ]
    assert texts[0] == texts[1]


def test_the_command_says_what_it_did(tpru: Tpru, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    code, out, _ = tpru("prepare", path, tmp_path / "out", "--split", "train=0.75,test=0.25")
    assert code == 0
    assert "12 of 12 rows written" in out
    code, _, error = tpru("prepare", path, tmp_path / "out", "--split", "train:0.75")
    assert (code, error) == (2, "tpru: --split: found 'train:0.75', expected the form train=0.95,test=0.05\n")
    rows = [row for split in ("train", "test") for row in read(tmp_path / "out", split)]
    assert picture(0) in [cell["bytes"] for row in rows for cell in row["images"]]


def test_a_split_prints_sizes_and_scenes_and_refuses_one_that_measures_a_scene_alone(
    tpru: Tpru, tmp_path: Path
) -> None:
    rows = [reordering(i, scene="abc"[i % 3], source_id=f"s{i}") for i in range(12)]
    path, out = write_parquet(tmp_path / "rows.parquet", rows), tmp_path / "out"
    code, _, error = tpru("prepare", path, out, "--split", "train=0.92,test=0.08")
    assert code == 1
    assert re.search("--split: found the scene [abc] alone in test, of 3, expected several;.*--allow", error)
    assert not out.exists()
    code, text, _ = tpru("prepare", path, out, "--split", "train=0.92,test=0.08", "--allow")
    assert (code, len(read(out, "test"))) == (0, 1)
    assert "test" in text
    code, text, _ = tpru("prepare", path, out, "--split", "train=0.5,test=0.5")
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert (code, "rows 6 6 12" in lines) == (0, True)
    for scene in "abc":
        found = [sum(row["extra_info"]["scene"] == scene for row in read(out, s)) for s in ("test", "train")]
        assert f"{scene} {found[0]} {found[1]} 4" in lines
    assert f"tpru data view {out}@test --out test.html" in lines


def test_an_empty_split_is_refused_unless_it_is_allowed(tpru: Tpru, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [reordering(i, source_id="one") for i in range(3)])
    code, _, error = tpru("prepare", path, tmp_path / "out", "--split", "train=0.9,test=0.1")
    assert (code, "found 1 group of rows" in error, "--allow" in error) == (1, True, True)
    code, out, _ = tpru("prepare", path, tmp_path / "out", "--split", "train=0.9,test=0.1", "--allow")
    assert (code, "3 of 3 rows written" in out) == (0, True)


def test_a_row_whose_tokens_cannot_be_counted_is_named_by_its_place(
    tmp_path: Path, checkpoint: Path, tpru: Tpru
) -> None:
    pytest.importorskip("transformers")
    rows = [reordering(i % 12) for i in range(80)]
    rows[70]["problem"] += "<|image_pad|>"  # plain text to other models, an image to this one
    path = write_parquet(tmp_path / "rows.parquet", rows)
    command = ("prepare", path, tmp_path / "out", "--model", checkpoint, "--workers", 1)
    code, _, error = tpru(*command)
    assert code == 1
    assert f"{path} row 70: problem: found " in error
    code, out, _ = tpru(*command, "--drop-invalid")
    assert code == 0
    assert "79 of 80 rows written" in out
