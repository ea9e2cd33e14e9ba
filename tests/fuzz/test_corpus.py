"""What the fuzzer starts from, and what it has found: no target raises on any of it."""

import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from targets import TARGETS  # noqa: E402

CASES = [(name, path.name) for name in TARGETS for path in sorted((HERE / "corpus" / name).iterdir())]


@pytest.mark.parametrize(("target", "case"), CASES)
def test_no_target_raises(target: str, case: str) -> None:
    begin = time.process_time()
    TARGETS[target]((HERE / "corpus" / target / case).read_bytes())
    assert time.process_time() - begin < 5


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file()) < 64 * 2**10


@pytest.mark.parametrize(
    ("target", "data"),
    [
        ("report", b'm{"step":1,"data":' + b'{"a":' * 3000 + b"1" + b"}" * 3001),
        ("report", b"r" + b"[" * 3000 + b"\n"),
        ("report", b's{"folder":["x"]}\0\0ca: 1\0\0m{"step":true}\n'),
        ("report", b"c" + b"[" * 1500 + b'\0\0m{"step":1,"data":{"a":1}}\n'),
        ("report", b'm{"step":1' + b"0" * 400 + b"}\n" + b'{"step":2,"data":{"a":1' + b"0" * 400 + b"}}\n"),
        ("report", b"cdata: \xff\xfe\0\0m{}\n"),
        ("rows", b"l" + b'{"a":' * 3000),
        ("template", b"{{ content" + b"|trim" * 9000 + b" }}"),
        ("grader", b"B\0A. x\nB. y\0" + b"<answer>" * 5000),
        ("grader", b"\0" + b"A. " * 3000 + b"\0" + b"(" * 9000),
    ],
)
def test_depth_and_length(target: str, data: bytes) -> None:
    """What a fuzzer does not find in a minute."""
    begin = time.process_time()
    TARGETS[target](data)
    assert time.process_time() - begin < 5
