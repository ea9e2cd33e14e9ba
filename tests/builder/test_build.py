"""`tpru build`: frames in, rows out, by the command; what is unusable is listed and the rest is kept."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.builds import Run, provenance
from support.frames import encoded, moment, scenes, stills
from support.results import contents, read
from support.rows import Row

from tpru_verl.builder import pipeline, stages
from tpru_verl.data.source.forms import Source
from tpru_verl.data.validate import validate
from tpru_verl.files import locked
from tpru_verl.sample import NONE_OPTION, parse_options


def right_option(row: Row) -> str:
    return parse_options(row["problem"])[row["answer"]]


def test_folders_of_pictures_become_valid_rows_of_the_three_tasks(build: Run, tmp_path: Path) -> None:
    manifest = build(scenes(tmp_path / "in"))
    assert manifest["rows"]["written"] == 24
    assert set(manifest["rows"]["tasks"]["train"].values()) == {8}
    report = validate(Source.open(str(tmp_path / "out")), deep=True, workers=1)
    assert (report.rows, report.findings) == (24, [])
    files = {path.read_bytes() for path in (tmp_path / "in").rglob("*.jpg")}
    for row in read(tmp_path / "out"):
        images = [cell["bytes"] for cell in row["images"]]
        assert len({*images}) == len(images) == row["problem"].count("<image>")
        assert files.issuperset(images), "bytes are those of the files"
    assert not list(tmp_path.glob(".out*"))


def test_answers_are_right_by_the_frames_numbers(build: Run, tmp_path: Path) -> None:
    build(scenes(tmp_path / "in"))
    origin = provenance(tmp_path / "out")
    kinds: Counter[str] = Counter()
    for row in read(tmp_path / "out"):
        line = origin[row["extra_info"]["row_id"]]
        numbers = [frame["index"] for frame in line["frames"]]
        kinds[line["negative"]] += 1
        assert (right_option(row) == NONE_OPTION) == bool(line["negative"])
        options = parse_options(row["problem"])
        if line["task"] == "temporal_reordering":
            order = " ".join(str(numbers.index(n) + 1) for n in sorted(numbers))
            assert (order in options.values()) == (not line["negative"])
            assert line["negative"] or right_option(row) == order
            continue
        given, candidates = numbers[:3], line["frames"][3:]
        low, high = (given[1], given[2]) if line["task"] == "next_frame_prediction" else (-1, given[0])
        fitting = [f["clip"] == line["clip"] and low < f["index"] < high for f in candidates]
        assert sum(fitting) == (not line["negative"]), "one candidate fits, or none"
        letters = [letter for letter, text in options.items() if text == "<image>"]
        assert line["negative"] or letters[fitting.index(True)] == row["answer"]
    assert kinds == {"": 24 - 5, "missing answer": 5}


def test_without_negatives_none_is_not_offered(build: Run, tmp_path: Path) -> None:
    manifest = build(scenes(tmp_path / "in"), "out", "--negatives", 0)
    assert all(kinds == {"positive": 8} for kinds in manifest["rows"]["negatives"].values())
    for row in read(tmp_path / "out"):
        assert list(parse_options(row["problem"])) == ["A", "B", "C", "D"]
        assert NONE_OPTION not in row["problem"]
    assert not validate(Source.open(str(tmp_path / "out")), workers=1).findings


def test_any_number_of_workers_gives_the_same_bytes(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in")
    build(source)
    build(source, "other", "--workers", 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    build(source, "third", "--seed", 1)
    assert contents(tmp_path / "third") != contents(tmp_path / "out")


@pytest.mark.e2e
def test_ray_gives_the_same_bytes(build: Run, tmp_path: Path) -> None:
    import ray

    source = scenes(tmp_path / "in")
    build(source)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        build(source, "other", "--engine", "ray", "--workers", 3)
    finally:
        ray.shutdown()
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_an_ended_run_goes_on_where_it_was(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scenes(tmp_path / "in")
    build(source, "whole")

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "card_of", ended)
        with pytest.raises(SystemExit):
            build(source)
    assert not (tmp_path / "out").exists()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.work").rglob("*.*")}
    monkeypatch.setattr(stages, "clips_of", ended)  # would end the run if a file of clips were missing
    monkeypatch.setattr(stages.layout, "open_shard", ended)
    build(source)
    assert shards
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_changed_source_is_read_anew(build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scenes(tmp_path / "in", takes=4)

    def ended(*_: object) -> None:
        raise ValueError("no card today")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "card_of", ended)
        with pytest.raises(SystemExit):
            build(source)
    stills(source / "scene0" / "take9", 9)
    assert build(source)["clips"] == 5


def test_splits_share_no_group_and_no_picture(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=16)
    manifest = build(source, "out", "--split", "train=0.75,test=0.25")
    assert set(manifest["rows"]["splits"]) == {"train", "test"}
    groups, pictures = [], []
    for split in ("train", "test"):
        rows = read(tmp_path / "out", split)
        groups.append({row["extra_info"]["source_id"] for row in rows})
        pictures.append({cell["bytes"] for row in rows for cell in row["images"]})
        tasks = Counter(row["extra_info"]["task"] for row in rows)
        assert len(tasks) == 3
    assert groups[0].isdisjoint(groups[1])
    assert pictures[0].isdisjoint(pictures[1])
    report = validate(
        Source.open(f"{tmp_path}/out@train"), against=Source.open(f"{tmp_path}/out@test"), workers=1
    )
    assert not report.findings


def test_what_a_test_set_shows_is_left_out(build: Run, tmp_path: Path) -> None:
    build(scenes(tmp_path / "tests", takes=2), "held")
    source = scenes(tmp_path / "in", takes=6)  # takes 0 and 1 are those of the test set
    manifest = build(source, "out", "--against", tmp_path / "held")
    assert manifest["left_out"] == {"leak": 2}
    clips = {line["clip"] for line in provenance(tmp_path / "out").values()}
    assert clips.isdisjoint({"scene0/take0", "scene1/take1"})
    again = validate(
        Source.open(str(tmp_path / "out")), against=Source.open(str(tmp_path / "held")), workers=1
    )
    assert not again.findings


def episodes(path: Path, lines: list[dict[str, Any]]) -> Path:
    for number, line in enumerate(lines):
        names = []
        for place in range(8):
            name = f"pictures/{number}-{place}.png"
            (path.parent / "pictures").mkdir(parents=True, exist_ok=True)
            (path.parent / name).write_bytes(encoded(moment(number, place / 7), "PNG"))
            names.append(name)
        line.setdefault("images", names)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_episodes_bring_texts_and_mismatches(build: Run, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"id": f"e{i}", "text": f"someone opening app {i}", "scene": "phone", "source_id": f"s{i % 4}"}
        for i in range(10)
    ]
    manifest = build(
        episodes(tmp_path / "in/all.jsonl", lines), "out", "--negatives", "0.4", "--max-foreign", 0
    )
    kinds = manifest["rows"]["negatives"]
    assert all(kind == {"positive": 6, "mismatch": 2, "missing answer": 2} for kind in kinds.values())
    origin = provenance(tmp_path / "out")
    for row in read(tmp_path / "out"):
        line = origin[row["extra_info"]["row_id"]]
        number = line["clip"].removeprefix("e")
        fits = f"someone opening app {number}." in row["problem"]
        assert fits == (line["negative"] != "mismatch")
        assert row["problem"].startswith("These photos show someone opening app")


BAD_LINES: dict[str, tuple[Any, str]] = {
    "no json": ("{", "all.jsonl:2 (line 3): not readable as json"),
    "a list": ("[]", "all.jsonl:2 (line 3): found list, expected an object"),
    "no images": ('{"id": "x"}', "all.jsonl:2 (line 3): images: found no images, expected a list of paths"),
    "a missing image": (
        '{"images": ["none.png"]}',
        "all.jsonl:2 (line 3): images[0]: found 'none.png', but there is no",
    ),
    "a path outside": (
        '{"images": ["../../x.png"]}',
        "all.jsonl:2 (line 3): images[0]: found '../../x.png', expected a path",
    ),
    "too few texts": (
        '{"images": ["a", "b"], "texts": ["a"]}',
        "all.jsonl:2 (line 3): texts: found 1, expected one for",
    ),
    "a number": ('{"images": [3]}', "all.jsonl:2 (line 3): images[0]: found int, expected bytes"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_episode_is_one_line_and_the_rest_is_kept(
    build: Run, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = BAD_LINES[kind]
    path = episodes(tmp_path / "in/all.jsonl", [{"scene": "a"}, {"scene": "a"}])
    path.write_text(path.read_text() + text + "\n")
    manifest = build(path)
    assert (manifest["clips"], manifest["left_out"]) == (2, {"unreadable": 1})
    assert manifest["unread_kinds"] == {"in episodes": 1}
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(shown) == 1
    assert said in shown[0]
    assert ": : " not in shown[0]
    assert shown[0].count("all.jsonl") == 1
    (dropped,) = json.loads((tmp_path / "out/dropped.json").read_text())
    assert said in dropped["detail"]


def test_the_second_of_two_episodes_of_one_id_is_left_out(build: Run, tmp_path: Path) -> None:
    manifest = build(episodes(tmp_path / "in/all.jsonl", [{"id": "a"}, {"id": "b"}, {"id": "a"}]))
    assert manifest["left_out"] == {"id": 1}
    assert {line["clip"] for line in provenance(tmp_path / "out").values()} == {"a", "b"}


def test_a_broken_picture_costs_its_folder_alone(
    build: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, dropped = scenes(tmp_path / "in", takes=4), tmp_path / "out/dropped.json"
    victim = source / "scene0/take0/5.jpg"
    victim.write_bytes(victim.read_bytes()[:400])
    manifest = build(source)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"{source}: 1 could not be read, listed in {dropped}; the rows are of the rest"
    assert (manifest["clips"], manifest["left_out"]) == (3, {"unreadable": 1})
    assert "scene0/take0: frame 4" in dropped.read_text()


def test_a_link_out_of_the_source_is_refused(build: Run, tmp_path: Path) -> None:
    stills(tmp_path / "secret", 3)
    source = scenes(tmp_path / "in", takes=2)
    link = source / "scene0/take0/1.jpg"
    link.unlink()
    link.symlink_to(tmp_path / "secret/1.jpg")
    assert build(source)["left_out"] == {"unreadable": 1}
    assert "expected a path inside" in (tmp_path / "out/dropped.json").read_text()


def test_four_frames_borrow_wrong_ones_from_their_scene(build: Run, tmp_path: Path) -> None:
    manifest = build(scenes(tmp_path / "in", takes=8, frames=4), "out", "--max-foreign", 0)
    assert manifest["rows"]["written"] == 24
    for line in provenance(tmp_path / "out").values():
        clips = {frame["clip"].partition("/")[0] for frame in line["frames"]}
        assert clips == {line["scene"]}


def test_free_orders_gaps_and_other_numbers_of_steps(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", frames=16)
    build(source, "out", "--free-form", "--steps", "3,5,6", "--gaps", 2)
    rows = {task: [] for task in ("temporal_reordering", "next_frame_prediction", "previous_frame_review")}
    for row in read(tmp_path / "out"):
        rows[row["extra_info"]["task"]].append(row)
    origin = provenance(tmp_path / "out")
    lengths = set()
    for row in rows["temporal_reordering"]:
        numbers = [frame["index"] for frame in origin[row["extra_info"]["row_id"]]["frames"]]
        assert row["answer"] == " ".join(str(numbers.index(n) + 1) for n in sorted(numbers))
        lengths.add(len(numbers))
    assert lengths <= {3, 5, 6}
    assert len(lengths) > 1
    several = [row for row in rows["next_frame_prediction"] if "in this order" in row["problem"]]
    assert several
    for row in several:
        line = origin[row["extra_info"]["row_id"]]
        numbers = [frame["index"] for frame in line["frames"]]
        given, shown = numbers[:-4], numbers[-4:]
        option = right_option(row)
        if line["negative"]:
            assert option == NONE_OPTION
            continue
        first, second = (shown[int(part.removeprefix("Image ")) - 1] for part in option.split(", "))
        stride = given[-1] - second
        assert first < second < given[-1]
        assert (second - stride) in given, "a given step lies between the two gaps"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--steps", "2"), "--steps: found 2, expected numbers from 3 to 8"),
        (("--steps", "four"), "--steps: found 'four', expected numbers such as"),
        (("--negatives", "2"), "--negatives: found 2, expected a share from 0 to 1"),
        (("--clip-frames", "3"), "--clip-frames: found 3, expected at least 4"),
        (("--every", "0"), "--every: found 0, expected seconds over 0"),
        (("--split", "train=0.5"), "--split: found train=0.5, expected shares"),
        (("--split", "train"), "--split: found 'train', expected the form"),
        (("--split", "a/b=1"), "--split: found the name 'a/b', expected letters"),
        (("--crop", "0,0.05"), "--crop: found '0,0.05', expected four numbers"),
        (("--mask", "0,0,0,0"), "--mask: found '0,0,0,0', expected RIGHT over LEFT"),
        (("--order-distances", "1"), "--order-distances: found '1', expected the form"),
        (("--order-distances", "2=1"), "--order-distances: found a share of 0.00 for distance 1, expected"),
        (("--split", "a=0.5,a=0.5"), "--split: found 'a=0.5,a=0.5', expected each name once"),
        (
            ("--order-distances", "1=0.5,1=0.5"),
            "--order-distances: found '1=0.5,1=0.5', expected each distance",
        ),
        (("--endpoint", "http://localhost:1"), "--model: found none, expected the model's name"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    build: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    source = scenes(tmp_path / "in", takes=1)
    with pytest.raises(SystemExit) as stop:
        build(source, "out", *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert (stop.value.code, line[: len(said) + 6]) == (2, f"tpru: {said}")
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(build: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("x")
    for source, said in {
        "empty": "found no file that ends in",
        "none": "no such file or folder",
        "empty.jsonl": "found an empty file",
        "notes.txt": "found '.txt', expected .json, .jsonl or a video",
    }.items():
        with pytest.raises(SystemExit) as stop:
            build(tmp_path / source)
        assert said in str(stop.value.code)
    with pytest.raises(SystemExit) as stop:
        build("sim:chess")
    assert "sim:chess: no such simulator, expected sim:bricks" in str(stop.value.code)


def test_another_folder_is_never_replaced(build: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("x")
    with pytest.raises(SystemExit) as stop:
        build(scenes(tmp_path / "in", takes=1))
    assert "found other files" in str(stop.value.code)


def test_a_second_build_into_one_folder_is_refused(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=1)
    with (
        locked(tmp_path / "out"),
        pytest.raises(SystemExit, match="is writing to it; wait"),
    ):
        build(source)
    assert build(source)["clips"] == 1


@pytest.mark.parametrize("missing", ["imagehash", "sklearn"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_read(
    build: Run, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None if name == missing else name)
    monkeypatch.setattr(pipeline, "items_of", None)
    with pytest.raises(SystemExit, match=r"tpru build needs .*: run pip install .*\[build\]"):
        build("sim:bricks", "out", "--audit")


def test_the_audit_is_in_the_card(build: Run, tmp_path: Path) -> None:
    manifest = build(scenes(tmp_path / "in"), "out", "--audit")
    card = (tmp_path / "out/README.md").read_text()
    assert manifest["audit"]["train"] in card
    assert "chance" in manifest["audit"]["train"]
    assert str(tmp_path) not in card + json.dumps(manifest)


def test_bricks_are_built_from_the_ground_up(build: Run) -> None:
    import numpy as np

    from tpru_verl.builder.sims import bricks

    for seed in range(20):
        for kind in bricks.KINDS:
            placed = bricks.build(kind, ["red", "blue"], np.random.default_rng(seed))
            assert all(bricks.supported(brick, placed[:i]) for i, brick in enumerate(placed))
    manifest = build("sim:bricks", "out", "--episodes", 10)
    assert manifest["rows"]["written"] >= 27
    kinds = sum((Counter(kinds) for kinds in manifest["rows"]["negatives"].values()), Counter())
    assert kinds["mismatch"]
    assert kinds["missing answer"]


def test_clips_whose_order_is_hardly_visible_are_shown_and_can_be_dropped(
    build: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shaking = [abs((i * 0.37) % 1 - 0.5) + i / 60 for i in range(24)]
    for seed, way in enumerate([shaking, [i / 24 for i in range(24)]]):
        folder = tmp_path / "in" / "scene" / f"<b>take{seed}"
        folder.mkdir(parents=True)
        for number, place in enumerate(way):
            (folder / f"{number}.png").write_bytes(encoded(moment(seed, place), "PNG"))
    few = ("--task", "temporal_reordering", "--min-order", 0.4, "--negatives", 0)
    manifest = build(tmp_path / "in", "out", *few)
    assert manifest["clips near the threshold"] == 1
    shaky, straight = (manifest["visible_order"][f"scene/<b>take{i}"] for i in (0, 1))
    assert 0.3 < shaky < 0.5 < straight <= 1
    page = (tmp_path / "out/clips.html").read_text()
    assert "look at" in " ".join(capsys.readouterr().out.split())
    assert 'value="scene/&lt;b&gt;take0"' in page
    assert "take1" not in page
    assert page.count("data:image/jpeg;base64,/9j/") == 8
    (tmp_path / "drop.txt").write_text("scene/<b>take0\n\n", encoding="utf-8-sig")
    manifest = build(tmp_path / "in", "out", *few, "--drop", tmp_path / "drop.txt")
    assert manifest["left_out"] == {"--drop": 1}
    assert not (tmp_path / "out/clips.html").exists()
    for name, scanned in (("take9", False), ("scene/<b>take0#7", True)):  # no such item, no such clip of one
        (tmp_path / "drop.txt").write_text(f"{name}\n")
        with pytest.raises(SystemExit) as stop:
            build(tmp_path / "in", "new", *few, "--drop", tmp_path / "drop.txt")
        assert f"--drop: found {name!r}, expected the id of a clip" in str(stop.value.code)
        assert any((tmp_path / ".new.work").rglob("*")) is scanned


def test_a_result_inside_its_source_is_refused(build: Run, tmp_path: Path) -> None:
    source = stills(tmp_path / "in", 0)
    with pytest.raises(SystemExit) as stop:
        build(source, "in/sub/out")
    assert "in/sub/out: found a folder inside the source" in str(stop.value)
    assert not (source / "sub").exists()
    build(source, "rows")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for rows in ("rows", "rows/data", "rows/data/train-00000-of-00001.parquet"):
        with pytest.raises(SystemExit) as stop:
            build(source, "rows", "--against", tmp_path / rows)
        assert f"found the source {tmp_path / rows} there, which the result would replace" in str(stop.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_picture_that_all_clips_share_is_named(build: Run, tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", takes=4)
    for take in range(1, 4):
        (source / f"scene{take % 2}/take{take}/3.jpg").write_bytes(
            (source / "scene0/take0/3.jpg").read_bytes()
        )
    with pytest.raises(SystemExit) as stop:
        build(source, "out", "--split", "train=0.5,test=0.5")
    assert "found 1 group of rows" in str(stop.value)
    assert "4 sources show the same picture: picture 3 of scene0/take0, picture 3 of scene0/take2" in str(
        stop.value
    )


def test_what_was_to_give_frames_is_named_first(build: Run, tmp_path: Path) -> None:
    source = tmp_path / "in"
    stills(source / "b", 0)
    (source / "b" / "4.jpg").write_bytes(b"x")
    (source / "a").symlink_to(source / "b", target_is_directory=True)
    with pytest.raises(SystemExit) as stop:
        build(source)
    assert "the first: b: " in str(stop.value)
