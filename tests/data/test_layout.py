"""The place of a result is taken in one step, by one process; its manifest is compared when it is read."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.commands import Tpru
from support.results import contents, read
from support.rows import reordering, write_parquet

from tpru_verl.data import layout
from tpru_verl.data.prepare import PrepareOptions, prepare
from tpru_verl.data.source.forms import Source
from tpru_verl.eval.benchmarks.base import load
from tpru_verl.eval.benchmarks.own import own

ROWS = [reordering(seed) for seed in range(12)]
Fill = Callable[[str], None]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Writes a small result with a text in its manifest, its rows and a file of its own to OUT."""

    def fill(text: str) -> None:
        with layout.result_folder(tmp_path / "out") as folder:
            (folder / "data/train-00000-of-00001.parquet").write_text(text)
            (folder / f"{text}.txt").write_text(text)
            names = ["data/train-00000-of-00001.parquet", f"{text}.txt"]
            (folder / "manifest.json").write_text(json.dumps({"files": [{"name": name} for name in names]}))

    return fill


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def result(text: str) -> dict[str, bytes]:
    names = ["data/train-00000-of-00001.parquet", f"{text}.txt"]
    manifest = json.dumps({"files": [{"name": name} for name in names]}).encode()
    return {"manifest.json": manifest, **dict.fromkeys(names, text.encode())}


class Killed(BaseException):
    """Stands for a kill: nothing that follows runs."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the n-th change of a name, and all that would follow it, fail as if the process was gone."""

    def kill_at(number: int) -> None:
        calls = 0

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*given: object, **named: object) -> object:
                nonlocal calls
                calls += 1
                if calls >= number:
                    raise Killed
                return original(*given, **named)

            return call

        for place, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            monkeypatch.setattr(place, name, counted(getattr(place, name)))
        monkeypatch.setattr(layout, "_exchanged", counted(layout._exchanged))

    return kill_at


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_step_leaves_the_old_result_or_the_new_one(
    tmp_path: Path,
    fill: Fill,
    kill_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    exchange: bool,
    number: int,
) -> None:
    fill("old")
    if not exchange:  # a system without such a call: between two renames OUT is absent, never mixed
        monkeypatch.setattr(layout, "_exchanged", lambda *_: False)
    kill_at(number)
    with suppress(Killed):
        fill("new")
    monkeypatch.undo()
    found = contents(tmp_path / "out") if (tmp_path / "out").exists() else None
    assert found in ([result("old"), result("new")] if exchange else [result("old"), result("new"), None])
    with pytest.raises(ValueError, match="fails"):  # a run that fails brings a result back, and keeps it
        _fails(tmp_path / "out")
    assert contents(tmp_path / "out") in (result("old"), result("new"))
    fill("newer")
    assert contents(tmp_path / "out") == result("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _fails(out: Path) -> None:
    with layout.result_folder(out):
        raise ValueError("fails")


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("exchange", [True, False])
def test_in_a_folder_that_cannot_be_renamed_the_rows_change_in_one_step(
    tmp_path: Path,
    fill: Fill,
    kill_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    exchange: bool,
    number: int,
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    inode = (tmp_path / "out").stat().st_ino
    fill("old")
    if not exchange:
        monkeypatch.setattr(layout, "_exchanged", lambda *_: False)
    kill_at(number)
    with suppress(Killed):
        fill("new")
    monkeypatch.undo()
    found = contents(tmp_path / "out")
    rows = found.get("data/train-00000-of-00001.parquet", b"" if exchange else b"old").decode()
    assert found.get("manifest.json") in (result(rows)["manifest.json"], None)  # never of other rows
    monkeypatch.chdir(tmp_path / "out")
    fill("newer")
    assert contents(tmp_path / "out") == result("newer")
    assert (tmp_path / "out").stat().st_ino == inode


def test_a_link_stays_a_link(tmp_path: Path, fill: Fill) -> None:
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk/real")
    fill("old")
    fill("new")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk/real") == result("new")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    "links", [["a.parquet"], ["manifest.json", "data/train-00000-of-00001.parquet"], ["data"]]
)
def test_dangling_links_are_files_of_the_user(tmp_path: Path, fill: Fill, links: list[str]) -> None:
    for name in links:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).symlink_to(".git/annex/objects/not-here")
    with pytest.raises(FileExistsError, match="found"):
        fill("new")
    assert all((tmp_path / "out" / name).is_symlink() for name in links)


def test_what_comes_into_the_folder_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="found other files"), layout.result_folder(tmp_path / "out"):
        (tmp_path / "out/thesis.txt").write_text("mine")
    assert contents(tmp_path / "out") == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "mounted",
    ["mount -t tmpfs tmpfs out", "mount --bind source out"],
)
def test_a_mount_point_is_written_into(tmp_path: Path, mounted: str) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount")
    work, rows = tmp_path / "work", write_parquet(tmp_path / "rows.parquet", ROWS)
    (work / "out").mkdir(parents=True)
    (work / "source").mkdir()
    prepare_it = shlex.join(prepare_command(rows, Path("out"), "--workers", "1"))
    script = f"cd {work} && {mounted} && {prepare_it} && {prepare_it} && ls -A . out && cat out/manifest.json"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 rows written" in done.stdout
    assert ".:\nout\nsource\n\nout:\nREADME.md\ndata\nmanifest.json\n" in done.stdout


def test_the_working_folder_is_written_into(
    tmp_path: Path, tpru: Tpru, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_parquet(tmp_path / "rows.parquet", ROWS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        assert tpru("prepare", rows, ".", "--workers", 1)[0] == 0
    assert len(read(tmp_path / "here")) == 12
    assert Path.cwd() == tmp_path / "here"
    assert names(tmp_path / "here") == ["README.md", "data", "manifest.json"]
    assert names(tmp_path) == ["here", "rows.parquet"]


# A manifest against the files that it lists.


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    split = {"train": 0.75, "test": 0.25}
    prepare(Source.open(str(path)), tmp_path / "out", PrepareOptions(split=split), workers=1)
    return tmp_path / "out"


def test_shards_of_another_result_are_refused_when_they_are_read(
    prepared: Path, tmp_path: Path, tpru: Tpru
) -> None:
    other = write_parquet(tmp_path / "other.parquet", [reordering(seed) for seed in range(40, 45)])
    prepare(Source.open(str(other)), tmp_path / "other", PrepareOptions(), workers=1)
    shard = "data/train-00000-of-00001.parquet"
    shutil.copy(tmp_path / "other" / shard, prepared / shard)
    for name in (f"{prepared}@train", str(prepared / shard)):
        code, _, error = tpru("stats", name)
        assert code == 1
        assert f"{shard}: found bytes" in error
        assert "expected" in error
        assert "manifest.json" in error
    assert tpru("stats", f"{prepared}@test")[0] == 0


def test_a_missing_or_an_extra_shard_is_refused(prepared: Path) -> None:
    shard = prepared / "data/train-00000-of-00001.parquet"
    extra = shard.with_name("train-00001-of-00002.parquet")
    shutil.copy(shard, extra)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: not in .*manifest\.json"):
        Source.open(f"{prepared}@train")
    extra.unlink()
    manifest = json.loads((prepared / "manifest.json").read_text())
    entry = next(file for file in manifest["files"] if "train" in file["name"])
    manifest["files"].append({**entry, "name": "data/train-00001-of-00002.parquet"})
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: missing"):
        Source.open(f"{prepared}@train")
    assert Source.open(str(shard)).rows == entry["rows"]  # one file, which was asked for by its name


def test_a_folder_without_a_whole_split_is_refused_and_the_other_split_is_read(
    prepared: Path, tmp_path: Path, tpru: Tpru
) -> None:
    (prepared / "data/test-00000-of-00001.parquet").unlink()
    for name in (prepared, prepared / "data"):
        code, _, error = tpru("validate", name, "--workers", 1)
        assert code == 1
        assert f"{prepared}/data/test-00000-of-00001.parquet: missing, {prepared}/manifest.json" in error
        assert f"read one split alone: {prepared}@train" in error
    for name in (f"{prepared}@train", prepared / "data/train-00000-of-00001.parquet"):
        assert tpru("validate", name, "--workers", 1)[0] == 0


def test_an_evaluation_reads_no_changed_shard(prepared: Path) -> None:
    shard = prepared / "data/train-00000-of-00001.parquet"
    write_parquet(shard, ROWS[:1])
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet: found bytes"):
        load(*own([f"{prepared}@train"])[0])


def test_validate_compares_checksums(prepared: Path, tpru: Tpru) -> None:
    shard = prepared / "data/train-00000-of-00001.parquet"
    assert tpru("validate", f"{prepared}@train", "--workers", 1)[0] == 0
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, _, error = tpru("validate", f"{prepared}@train", "--workers", 1)
    assert code == 1
    assert f"{shard.name}: found xxh3_128" in error


@pytest.mark.parametrize("manifest", ["{}", "[]", "not json", '{"files": 3}', '{"files": [{"no": "name"}]}'])
def test_a_manifest_of_somebody_else_is_not_ours_to_compare(prepared: Path, manifest: str) -> None:
    (prepared / "manifest.json").write_text(manifest)
    assert Source.open(f"{prepared}@train").rows


@pytest.mark.parametrize("name", ["../../evil", "", ".", "a/b", "a b", "train-v2", "tr\n", "*"])
def test_names_of_splits_are_names(tmp_path: Path, name: str) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    with pytest.raises(ValueError, match=r"--split: found the name .*, expected letters, digits and _ only"):
        prepare(
            Source.open(str(path)), tmp_path / "out", PrepareOptions(split={name: 0.5, "x": 0.5}), workers=1
        )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


# Several at once, and ends by signals.


def prepare_command(rows: Path, out: Path, *more: str) -> list[str]:
    code = "from tpru_verl.cli import main; main()"
    return [sys.executable, "-c", code, "data", "prepare", str(rows), str(out), *more]


def test_of_two_at_once_the_second_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    sources = [write_parquet(tmp_path / f"{n}.parquet", [reordering(i) for i in range(n)]) for n in (300, 20)]
    commands = [prepare_command(source, tmp_path / "out", "--workers", "1") for source in sources]
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    done = [process.returncode for process in running]
    assert 0 in done
    for code, error in zip(done, said, strict=True):
        if code:
            assert "is writing to it" in error
            assert f"process {running[done.index(0)].pid} on" in error
    assert Source.open(str(tmp_path / "out")).rows in (300, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20.parquet", "300.parquet", "out"]


class TestInsideTheSource:
    """A result is never read as, or in place of, the rows that it was made of."""

    def test_a_result_inside_of_its_source_is_refused(self, tmp_path: Path, tpru: Tpru) -> None:
        folder = tmp_path / "rows"
        write_parquet(folder / "train.parquet", ROWS)
        (tmp_path / "link").symlink_to(folder)
        for source in (folder, f"{folder}@train", tmp_path / "link"):
            code, _, error = tpru("prepare", source, folder / "sub/out")
            assert (code, "rows/sub/out: found a folder inside the source" in error) == (1, True)
        assert names(folder) == ["train.parquet"]
        assert tpru("prepare", folder, tmp_path / "rows2")[0] == 0  # beside it

    def test_a_result_never_replaces_its_own_source(
        self, tmp_path: Path, tpru: Tpru, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_parquet(tmp_path / "other.parquet", ROWS)
        halves = ("--split", "train=0.5,test=0.5", "--workers", 1)
        assert tpru("prepare", "other.parquet", "rows", *halves)[0] == 0
        (tmp_path / "link").symlink_to("rows")
        (tmp_path / "sub").mkdir()
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards/train.parquet").symlink_to("../rows/data/train-00000-of-00001.parquet")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        sources = [
            *("rows@train", "./rows/@test", f"{tmp_path}/rows@train", "link@train", "rows/data@train"),
            *("rows/data/train-00000-of-00001.parquet", "shards"),
            *("other.parquet --against rows@test", f"other.parquet --against {tmp_path}/rows/data@test"),
        ]
        for source in sources:
            for out in ("rows", "./rows", tmp_path / "rows", "link", "sub/../rows --for trl"):
                code, _, error = tpru("prepare", *source.split(), *str(out).split(), "--workers", 1)
                assert (code, "found the source" in error, "name another folder" in error) == (1, True, True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
    def test_a_folder_of_rows_and_a_result_names_both(self, tmp_path: Path, tpru: Tpru, name: str) -> None:
        folder = tmp_path / "all"
        write_parquet(folder / "rows.parquet", ROWS)
        tpru("prepare", folder / "rows.parquet", folder / "out")
        (folder / "rows.parquet").rename(folder / name)
        code, _, error = tpru("stats", folder)
        assert code == 1
        assert f"found an earlier result, {folder / 'out'}, beside {name}, expected one of them" in error
        (folder / name).rename(tmp_path / name)
        assert Source.open(str(folder)).rows == 12  # results alone are rows as any others
