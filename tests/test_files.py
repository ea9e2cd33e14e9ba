"""Results on disk: whole or not at all, through links and devices, one writer of a folder at a time."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tpru_verl.files import locked, whole, write_bytes, write_json, write_text


def write_half(path: Path, error: BaseException) -> None:
    with whole(path) as file:
        file.write(b"half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    path.chmod(0o640)
    with whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_an_end_in_the_middle_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(type(error)):
        write_half(tmp_path / "x.txt", error)
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_two_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with whole(path) as first, whole(path) as second:
        first.write(b"first" * 1000)
        second.write(b"second")
    assert path.read_text() == "first" * 1000
    assert names(tmp_path) == ["x.txt"]


def test_missing_folders_are_made_and_long_names_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a/b" / ("n" * 250), {"x": 1})
    assert json.loads((tmp_path / "a/b" / ("n" * 250)).read_text()) == {"x": 1}
    with pytest.raises(IsADirectoryError, match="found a folder, expected a file"):
        write_text(tmp_path / "a", "x")
    write_text(tmp_path / "file", "x")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file/below", "x")


def test_lone_surrogates_become_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "a\ud800b")
    assert (tmp_path / "x").read_text() == r"a\ud800b"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/real").write_text("old")
    for name, target in {"link": "disk/real", "dangling": "disk/not-yet"}.items():
        (tmp_path / name).symlink_to(target)
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_text() == "new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_text(tmp_path / "loop", "x")
    assert (tmp_path / "loop").is_symlink()


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_text(path, "through")
    reader.join(10)
    assert read == ["through"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert names(tmp_path) == ["fifo"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices, and only root could replace one")
@pytest.mark.parametrize(("minor", "full"), [(3, False), (7, True)])
def test_a_device_is_written_to(tmp_path: Path, minor: int, full: bool) -> None:
    path = tmp_path / "device"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))  # as /dev/null and /dev/full
        path.open("ab").close()
    except PermissionError:
        pytest.skip("this file system takes no devices")
    if full:
        with pytest.raises(OSError, match="No space left on device") as error:
            write_text(path, "x")
        assert error.value.filename == str(path)
    else:
        write_text(path, "x")
    assert stat.S_ISCHR(path.stat().st_mode)
    assert names(tmp_path) == ["device"]


@pytest.mark.parametrize("mode", ["pipe", "file"])
def test_stdout_may_be_named(tmp_path: Path, mode: str) -> None:
    code = (
        "from pathlib import Path; from tpru_verl.files import write_text; "
        "print('before'); write_text(Path('/dev/stdout'), 'inside\\n'); print('after')"
    )
    command = [sys.executable, "-c", code]
    if mode == "pipe":
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        with (tmp_path / "out").open("w") as file:
            subprocess.run(command, stdout=file, check=True)
        said = (tmp_path / "out").read_text()
    assert said == "before\ninside\nafter\n"


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as error:
        write_half(tmp_path / "x", OSError(errno.ENOSPC, "No space left on device"))
    assert error.value.filename == str(tmp_path / "x")
    assert not names(tmp_path)


def test_a_mount_point_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("old")

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_text() == "new"
    assert names(tmp_path) == ["x"]


HOLD = """
import sys, time
from pathlib import Path
from tpru_verl.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        for name in ("out", "link", "./x/../out"):
            with (
                pytest.raises(RuntimeError, match=rf"process {holder.pid} .* is writing to it"),
                locked(tmp_path / name),
            ):
                pass
        with locked(tmp_path / "other"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(out):  # a kill releases it
        assert names(tmp_path) == [".out.lock", "link"]
    assert names(tmp_path) == ["link"]
    with pytest.raises(ValueError, match="x"), locked(out):
        raise ValueError("x")
    assert names(tmp_path) == ["link"]
    with pytest.raises(ValueError, match="y"), locked(tmp_path / "new/folder/out"):
        raise ValueError("y")
    assert names(tmp_path) == ["link"]
