"""Sources: every form in which rows are about comes out as the same rows; what is unreadable is named."""

import base64
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from string import ascii_uppercase
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.hub import COMMITS, hub
from support.rows import picture, reordering, write_jsonl, write_parquet

from tpru_verl.data.source.cells import cells_of_text, image_bytes
from tpru_verl.data.source.forms import Keys, Source
from tpru_verl.data.source.parts import is_local, split_of
from tpru_verl.data.source.rows import Row, read_rows
from tpru_verl.eval.benchmarks import find
from tpru_verl.eval.benchmarks.base import load
from tpru_verl.sample import Task


def read(name: Path | str, **keys: Any) -> list[Row]:
    source = Source.open(str(name), keys=Keys(**keys))
    return [row for unit in source.units for row in read_rows(unit, source.form(unit))]


def assert_same(found: list[Row], rows: list[dict]) -> None:
    assert [(row.problem, row.answer, row.images()) for row in found] == [
        (row["problem"], row["answer"], row["images"]) for row in rows
    ]
    assert [row.number for row in found] == list(range(len(rows)))


ROWS = [reordering(seed) for seed in range(6)]


def test_parquet_in_row_groups_and_folders_of_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ROWS[:5], row_group_size=2)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", ROWS[5:])
    (tmp_path / "README.md").write_text("not rows")
    found = read(tmp_path)
    assert [row.images() for row in found] == [row["images"] for row in ROWS]
    assert [row.number for row in found] == [0, 1, 2, 3, 4, 0]
    source = Source.open(str(tmp_path))
    assert [unit.rows for unit in source.units] == [2, 2, 1, 1]
    assert source.rows == 6


@pytest.mark.parametrize(("kind", "other"), [("jsonl", "JSONL"), ("parquet", "Parquet"), ("csv", "CSV")])
def test_a_file_of_a_folder_is_not_left_out_for_its_capitals(tmp_path: Path, kind: str, other: str) -> None:
    for name in (f"a.{kind}", f"b.{other}", f"c.{kind}"):
        if kind == "parquet":
            write_parquet(tmp_path / name, ROWS[:1])
        else:
            text = (
                "problem,answer,image\n1,2,3\n"
                if kind == "csv"
                else '{"problem": "", "answer": "", "image": ""}'
            )
            (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"b\.{other}: found '\.{other}', expected \.parquet"):
        Source.open(str(tmp_path))


def test_an_image_folder_beside_a_jsonl_of_paths(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    listed = []
    for i, row in enumerate(ROWS):
        names = [f"frames/{i}-{j}.png" for j in range(4)]
        for name, data in zip(names, row["images"], strict=True):
            (tmp_path / name).write_bytes(data)
        listed.append({**row, "images": names})
    assert_same(read(write_jsonl(tmp_path / "rows.jsonl", listed)), ROWS)
    assert_same(read(tmp_path), ROWS)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_images_in_base64(tmp_path: Path, suffix: str, prefix: str) -> None:
    rows = [
        {**row, "images": [prefix + base64.b64encode(image).decode() for image in row["images"]]}
        for row in ROWS
    ]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        write_jsonl(path, rows)
    assert_same(read(path), ROWS)


def test_the_table_of_vlmevalkit(tmp_path: Path) -> None:
    path = tmp_path / "bench.tsv"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "question", "A", "B", "C", "answer", "image"])
        encoded = [base64.b64encode(picture(i)).decode() for i in range(2)]
        table.writerow([0, "Which comes\nnext?", "left", "right", "", "B", str(encoded)])
        table.writerow([1, "And <image> here?", "left", "right", "up", "C", encoded[0]])
    first, second = read(path)
    assert first.problem == "<image><image>Which comes\nnext?\nA. left\nB. right"
    assert first.images() == [picture(0), picture(1)]
    assert (second.problem, second.answer) == ("And <image> here?\nA. left\nB. right\nC. up", "C")


@pytest.mark.parametrize(
    "text", ["['\u56fe/1.png', \"it's\"]", '["\\u56fe/1.png", "it\'s"]', '["\u56fe/1.png", "it\'s", ""]']
)
def test_a_list_written_in_python_or_json_names_its_files(text: str) -> None:
    assert cells_of_text(text) == ["\u56fe/1.png", "it's"]


def test_options_of_a_table_are_a_to_z_and_nan_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bench.tsv"
    texts = {letter: f"line {letter}" for letter in ascii_uppercase} | {"C": "nan", "D": "None", "Z": ""}
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "question", "hint", *texts, "answer", "image"])
        table.writerow([0, "Which?", "Look.", *texts.values(), "Y", base64.b64encode(picture()).decode()])
    (row,) = read(path)
    options = {letter: text for letter, text in texts.items() if letter not in "CZ"}
    listed = "".join(f"\n{letter}. {text}" for letter, text in options.items())
    assert row.problem == f"<image>Hint: Look.\nWhich?{listed}"
    (item,) = load(find("blink")[0], str(path)).items
    assert item.options == options


class TestBase64:
    """Every legal form of the bytes is read; other text is a path or one short line."""

    @given(st.binary(min_size=200, max_size=2000), st.integers(1, 200))
    def test_is_read_in_every_form(self, tail: bytes, width: int) -> None:
        data = b"\x89PNG\r\n\x1a\n" + tail
        text = base64.b64encode(data).decode()
        safe = base64.urlsafe_b64encode(data).decode()
        lines = "\r\n".join(text[i : i + width] for i in range(0, len(text), width))
        for form in (text, safe, safe.rstrip("="), lines, base64.encodebytes(data).decode()):
            assert image_bytes(form, None) == data
        for head in ("image/png", "image/png;charset=utf-8", "application/octet-stream;name=a.png", ""):
            for body in (text, lines, quote(text), safe):
                assert image_bytes(f"data:{head};base64,{body}", None) == data
                assert image_bytes(f"DATA:{head};BASE64,{body}", None) == data
                assert image_bytes(f" \n data:{head}; base64, {body}\n", None) == data

    @pytest.mark.parametrize(
        "text", ["data:image/png,abc", "data:image/png;base64,?!", "/9j/" * 9999 + "?", "A" * 99]
    )
    def test_what_is_none_is_one_short_line(self, text: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="found") as error:
            image_bytes(text, tmp_path)
        assert len(str(error.value)) < 200 + len(str(tmp_path))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("form", ["{}?", "'{}'", "\ufeff{}"])
    @pytest.mark.parametrize("start", ["iVBORw0KGgo", "/9j/4AAQ"])
    def test_text_with_one_wrong_character_is_not_called_a_path(
        self, form: str, start: str, tmp_path: Path
    ) -> None:
        text = form.format(start + "Ab/+" * 2000)
        with pytest.raises(ValueError, match=r"of 8,0\d\d characters, neither base64 nor a path"):
            image_bytes(text, tmp_path)

    def test_a_file_may_have_a_name_that_looks_like_it(self, tmp_path: Path) -> None:
        (tmp_path / ("ab" * 40)).write_bytes(picture())
        assert image_bytes("ab" * 40, tmp_path) == picture()


SPLITS = [
    ("geo_train", "train"), ("training", "train"), ("Train", "train"), ("tpru-train-v2", "train"),
    ("test", "test"), ("testing", "test"), ("TPRU.EVAL.2", "test"), ("my evaluation", "test"),
    ("val", "validation"), ("dev-0", "validation"), ("x_valid", "validation"), ("validation", "validation"),
    ("train-00000-of-00002", "train"), ("hard-00000-of-00002", "hard"),
    ("dev-00000-of-00001-af3", "validation"),
    ("trainset", "train"), ("TrainData", "train"), ("tpruTRAIN", "train"), ("[train]", "train"),
    ("testset", "test"), ("myTestSplit", "test"), ("test(1)", "test"), ("held-out", "test"),
    ("heldOut", "test"), ("valset", "validation"), ("\u8bad\u7ec3\u96c6", "train"), ("\u6d4b\u8bd5", "test"),
    ("trn", "train"), ("x_tst", "test"), ("minitrain", "train"), ("mini-val", "validation"),
    ("minival2014", "validation"),
    ("minimal", ""), ("rows", ""), ("trainer", ""), ("contest", ""), ("evaluated", ""), ("pretrain", ""),
]  # fmt: skip


class TestSplits:
    @pytest.mark.parametrize(("name", "split"), SPLITS)
    def test_are_those_of_datasets_in_files_and_folders(self, name: str, split: str) -> None:
        assert split_of(Path(f"{name}.parquet")) == split
        assert split_of(Path(name, "0.parquet")) == ("" if "-of-" in name and split == "hard" else split)

    @pytest.mark.parametrize(
        "others",
        [
            ("geo_train", "geo_test"),
            ("training", "testing"),
            ("Train", "Test"),
            ("trainset", "testSet"),
            ("trn", "tst"),
            ("minitrain", "TinyTest"),
        ],
    )
    @pytest.mark.parametrize("place", ["{}.parquet", "{}/rows.parquet", "{}/rows-00000-of-00001.parquet"])
    def test_are_never_read_as_one(self, others: tuple[str, str], place: str, tmp_path: Path) -> None:
        for name, rows in zip(others, (ROWS[:4], ROWS[4:]), strict=True):
            write_parquet(tmp_path / place.format(name), rows)
        with pytest.raises(ValueError, match=r"several splits, expected one.*: @test, @train"):
            read(tmp_path)
        assert [len(read(f"{tmp_path}@{name}")) for name in ("train", "test", "TRAINING")] == [4, 2, 4]
        with pytest.raises(
            FileNotFoundError, match=r"@tset: found no such split, expected one of: @test, @tr"
        ):
            read(f"{tmp_path}@tset")

    @pytest.mark.parametrize(
        ("names", "word"),
        [(("dev", "val", "train"), "validation"), (("train_a", "train_b", "test"), "train")],
    )
    def test_that_share_a_word_are_told_apart_by_the_names_of_their_shards(
        self, names: tuple[str, ...], word: str, tmp_path: Path
    ) -> None:
        for i, name in enumerate(names):
            write_parquet(tmp_path / f"data/{name}-00000-of-00001.parquet", ROWS[: i + 1])
        assert [len(read(f"{tmp_path}@{name}")) for name in names] == [1, 2, 3]
        with pytest.raises(ValueError, match=rf"several splits that this may mean.*@{names[0]}, @"):
            read(f"{tmp_path}@{word}")
        assert len(read(f"{tmp_path}@{names[2].upper()}")) == 3  # the only one of its kind
        (tmp_path / f"data/{names[2]}-00000-of-00001.parquet").unlink()
        with pytest.raises(ValueError, match=rf"several splits, expected one.*: @{names[0]}, @{names[1]}"):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("pieces", "word"),
        [
            (("train-en", "train-de"), "train"),
            (("train_en", "train_de"), "TRAIN"),
            (("train_0", "train_1"), "training"),
            (("train0", "train1"), "train"),
            (("train_en_0", "train_en_1"), "train_en"),
            (("train/train_0", "train/train_1"), "train"),
            (("train/train_a", "train/train_b"), "train"),
            (("train/en", "train/de"), "train"),
            (("dev-en", "dev-de", "val"), "dev"),
        ],
    )
    def test_in_pieces_are_read_together_by_their_word(
        self, pieces: tuple[str, ...], word: str, tmp_path: Path
    ) -> None:
        for i, name in enumerate((*pieces, "test")):
            write_parquet(tmp_path / f"s3/{name}-00000-of-00001.parquet", ROWS[i : i + 1])
        assert len(read(f"{tmp_path}/s3@{word}")) == 2
        assert len(read(f"{tmp_path}/s3@test")) == 1
        if "/" not in pieces[0]:
            assert [len(read(f"{tmp_path}/s3@{name}")) for name in pieces] == [1] * len(pieces)
        with pytest.raises(ValueError, match="several splits, expected one"):
            read(tmp_path / "s3")

    def test_in_pieces_are_read_together_where_nothing_else_is_there(self, tmp_path: Path) -> None:
        for i, name in enumerate(("train_0", "train_1")):
            write_parquet(tmp_path / f"train/{name}-00000-of-00001.parquet", ROWS[: i + 1])
        assert len(read(tmp_path / "train")) == len(read(f"{tmp_path}@train")) == 3
        with pytest.raises(ValueError, match="several splits that this may mean, expected one of: @train_0"):
            read(f"{tmp_path / 'train'}@train_2")
        write_parquet(tmp_path / "train/train-00000-of-00001.parquet", ROWS[:5])
        assert len(read(f"{tmp_path / 'train'}@train")) == 5  # the exact name comes first
        with pytest.raises(ValueError, match="several splits, expected one"):
            read(tmp_path / "train")

    def test_that_a_name_leaves_open_are_refused(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train_and_test.parquet", ROWS)
        with pytest.raises(ValueError, match=r"found the names of several splits \(train, test\)"):
            read(tmp_path)
        assert len(read(tmp_path / "train_and_test.parquet")) == 6
        with pytest.raises(ValueError, match=r"eval_kit/train.jsonl: found the names of several splits"):
            split_of(Path("eval_kit/train.jsonl"))
        with pytest.raises(ValueError, match="found a file, which has no splits"):
            read(f"{tmp_path / 'train_and_test.parquet'}@test")


def test_what_is_local_and_what_is_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org/here").mkdir(parents=True)
    local = [
        "org/here",
        "org/here@train",
        "/no",
        "./a/b",
        "../b",
        "~/a",
        "a/b/c",
        "rows.parquet",
        "a/b.jsonl",
    ]
    assert [is_local(name) for name in local] == [True] * len(local)
    assert [is_local(name) for name in ("org/name", "org/name@test", "Qwen/Qwen2.5-VL-7B")] == [False] * 3


def test_verls_own_form(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": ROWS[0]["problem"]}],
        "images": [base64.b64encode(image).decode() for image in ROWS[0]["images"]],
        "reward_model": {"style": "rule", "ground_truth": "B"},
        "extra_info": {"task": "temporal_reordering", "source_id": "film-7", "row_id": "r1"},
        "data_source": "mine",
    }
    (found,) = read(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert_same([found], ROWS[:1])
    assert (found.task, found.source_id, found.row_id) == (Task.TEMPORAL_REORDERING, "film-7", "r1")
    assert found.field("data_source") == "mine"


def test_columns_are_detected_or_named(tmp_path: Path) -> None:
    renamed = [{"question": r["problem"], "solution": r["answer"], "images": r["images"]} for r in ROWS]
    assert_same(read(write_parquet(tmp_path / "a.parquet", renamed)), ROWS)
    odd = [{"text": r["problem"], "key": r["answer"], "images": r["images"]} for r in ROWS]
    path = write_parquet(tmp_path / "b.parquet", odd)
    with pytest.raises(
        ValueError, match=r"found columns text, key, images; say with --problem-key and --ans"
    ):
        read(path)
    assert_same(read(path, problem="text", answer="key"), ROWS)
    with pytest.raises(ValueError, match=r"found columns text, key, images; expected nowhere"):
        read(path, problem="nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"PAR1 not really", r"rows\.parquet: not readable as parquet"),
        ("rows.jsonl", b"", "found an empty file"),
        ("rows.jsonl", b'{"problem": 1}\n{"problem": ', r"rows\.jsonl: found columns problem; say with"),
        ("rows.jsonl", b"[" * 100_000, "not readable as json: "),
        ("rows.json", b'{"a": ' + b"[" * 100_000, "line 1: not readable as json: "),
        (
            "rows.jsonl",
            b'{"problem": "", "answer": "", "images": []}\n{"pro',
            r"line 2: not readable as json",
        ),
        ("rows.jsonl", b"[1, 2]\n", r"row 0: found int, expected an object"),
        ("rows.json", b'{"problem"', r"not readable as json"),
        (
            "rows.tsv",
            b"question\tanswer\timage\nonly one\n",
            r"row 0: found more or fewer cells than columns",
        ),
        ("rows.jsonl", b"\xff\xfe\x00", "save the file as UTF-8"),
        ("rows.txt", b"x", r"found '\.txt', expected \.parquet"),
    ],
)
def test_what_is_unreadable_is_named_with_its_file(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    data = bytearray(path.read_bytes())
    data[200:4000] = bytes(3800)  # the footer is whole, the rows are not
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: not readable as parquet"):
        read(path)


def test_no_path_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "rows"
    folder.mkdir()
    for path in ("../secret.png", str(tmp_path / "secret.png"), "missing.png"):
        with pytest.raises(ValueError, match=r"expected a path inside|no such file"):
            image_bytes(path, folder)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="expected a path inside"):
        image_bytes("link.png", folder)


def test_pictures_of_pillow_are_encoded_without_loss() -> None:
    import io

    image = Image.open(io.BytesIO(picture(3)))
    again = Image.open(io.BytesIO(image_bytes(image, None)))
    assert again.tobytes() == image.convert("RGB").tobytes()


def test_the_hub_with_its_revisions_splits_and_refusals(tmp_path: Path) -> None:
    """The real `datasets`, asking a Hub of this machine."""
    pytest.importorskip("datasets")
    for revision, count in (("main", 6), ("v1", 3)):
        write_parquet(tmp_path / revision / "data/train-00000-of-00001.parquet", ROWS[:count])
        (tmp_path / revision / "README.md").write_text("# Rows\n")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "no_proxy": "*"}

    def tpru(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "data", *arguments]
        environment = {**os.environ, **home, "HF_ENDPOINT": address}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    with hub("org/rows", {name: tmp_path / name for name in COMMITS}) as address:
        assert "6 rows, all usable" in tpru("validate", "org/rows").stdout
        out = tmp_path / "out"
        assert tpru("prepare", "org/rows@train", str(out), "--revision", "v1").returncode == 0
        refused = [tpru("validate", name) for name in ("org/rows@test", "org/other")]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"]["name"] == "org/rows@train"
    assert manifest["source"]["revision"] == COMMITS["v1"]
    assert manifest["rows"]["written"] == 3
    assert [done.returncode for done in refused] == [1, 1]
    assert "expected one of its splits: org/rows@train" in refused[0].stderr.splitlines()[-1]
    assert "not readable from the Hub" in refused[1].stderr.splitlines()[-1]
