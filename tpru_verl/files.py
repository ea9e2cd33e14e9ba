"""Results on disk. A file appears whole or not at all, and one process at a time writes to a folder."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tpru_verl.redaction import redact_command

UNFINISHED = ".unfinished"  # how the name of a temporary file or folder ends
LOCK = ".lock"
PRIVATE = 0o600  # the mode of a file that may hold a key, or the replies of an endpoint
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    with whole(path, private=private) as file:
        file.write(content)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """As UTF-8. A lone surrogate, which JSON may hold, becomes an escape."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"), private=private)


def write_json(path: Path, content: object, *, private: bool = False) -> None:
    """Indented, so that two results can be compared line by line."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", private=private)


def check_output(option: str, out: Path | None, sources: Iterable[Path]) -> None:
    """Raises ValueError where writing to `out` would replace what is read: a file, or one inside a folder.

    A link counts as what it leads to. `option` is the option that names `out`.
    """
    if out is None or not out.is_file():
        return
    for source in sources:
        if source.is_dir() and lies_in(out, source):
            raise ValueError(f"{option} {out} lies in the source {source}; give another file")
        if source.is_file() and out.samefile(source):
            raise ValueError(f"{option} {out} is the source {source}; give another file")


def lies_in(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder`, or below it. A link, or a second mount, counts as what it leads to."""
    place = Path(os.path.realpath(path))
    if not folder.exists():
        return place.is_relative_to(os.path.realpath(folder))
    return any(other.exists() and other.samefile(folder) for other in (place, *place.parents))


def check_place(option: str, out: Path, *, folder: bool) -> None:
    """Raises ValueError where `out` cannot become the folder or the file that it is to be.

    `option` is the option that names `out`.
    """
    above = next(path for path in out.absolute().parents if os.path.lexists(path))
    if not above.is_dir():
        raise ValueError(
            f"{option} {out}: found the file {above}, expected a folder there; give another place"
        )
    if folder and os.path.lexists(out) and not out.is_dir():
        raise ValueError(f"{option} {out}: found a file, expected a folder or a new name")
    if not folder and out.is_dir():
        raise ValueError(f"{option} {out}: found a folder, expected the name of a file")


@contextmanager
def whole(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the block ends, and disappears when the block raises.

    A link stays a link: its target is replaced. A device, a FIFO and the file that stdout or stderr goes to
    are written to as they are. Missing folders are made. A file has the permissions of the one that it
    replaces; a new one those of the umask, or, where it is `private`, none for others than its owner.

    Raises OSError, which names `path`.
    """
    with _naming(path):
        if (stream := _stream(path)) is not None:
            with stream:
                yield stream
            return
        target = Path(os.path.realpath(path))
        unfinished = _make_beside(target, PRIVATE if private else 0o666)
        try:
            with unfinished.open("wb") as file:
                yield file
            _replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)


def _stream(path: Path) -> BinaryIO | None:
    """The open file where `path` exists and must not be replaced; None where it may be."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "found a folder, expected a file", str(path))
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError):  # a closed descriptor
            if os.path.samestat(found, os.fstat(descriptor)):
                stream.flush()
                return os.fdopen(os.dup(descriptor), "wb")
    return None if stat.S_ISREG(found.st_mode) else path.open("wb")


def _make_beside(target: Path, mode: int) -> Path:
    """An empty file with a name of its own in the folder of `target`, with the permissions of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        unfinished.touch(mode, exist_ok=False)
        with suppress(FileNotFoundError):
            unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    return unfinished


def _replace(unfinished: Path, target: Path) -> None:
    try:
        unfinished.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # A mount point, such as a single file of a container, can only be written into.
        shutil.copyfile(unfinished, target)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk says no name, and Arrow's errors bury it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def folder_for_a_block(folder: Path) -> Iterator[None]:
    """Make `folder` where it is missing. When the block ends, folders made here that are empty go again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # the deepest first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # one that is not empty
            for path in made:
                path.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes of this package from writing to `folder` while the block runs.

    The system releases the lock when this process ends, however it ends.

    Raises RuntimeError, which names the process, where another one has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = companion(folder, LOCK)
    with folder_for_a_block(path.parent):
        while True:
            with path.open("a+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    advice = "wait until it has ended, or name another folder"
                    raise RuntimeError(f"{folder}: {holder} is writing to it; {advice}") from None
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
                    said = "no locks on this file system: start no second command"
                    print(f"{folder}: {said}", file=sys.stderr)
                if not _is_at(file.fileno(), path):
                    continue  # its holder removed it between our opening and our locking
                try:
                    file.truncate(0)
                    process = f"process {os.getpid()} on {socket.gethostname()}"
                    file.write(f"{process} ({shlex.join(_command())})\n")
                    file.flush()
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _command() -> list[str]:
    return [Path(sys.argv[0]).name, *redact_command(sys.argv[1:])]  # others may read the lock


def companion(folder: Path, suffix: str) -> Path:
    """A hidden file or folder that belongs to `folder`: beside it, or inside where `is_fixed`."""
    target = Path(os.path.realpath(folder))
    return target / suffix if is_fixed(target) else target.with_name(f".{target.name}{suffix}")


def is_fixed(folder: Path) -> bool:
    """Whether nothing can be put in the place of `folder`: a mount point, or a parent without permission."""
    if not folder.is_dir():
        return False
    return os.path.ismount(folder) or str(folder) in _mount_points() or not os.access(folder.parent, os.W_OK)


def _mount_points() -> set[str]:
    """Linux knows those within one file system, too, which `os.path.ismount` does not see."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {line.split(" ")[4].encode().decode("unicode_escape") for line in lines}
