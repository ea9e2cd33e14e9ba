"""Whether the Hub can be asked is found out once, and quickly."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tpru_verl import cli, hub

QWEN = "Qwen/Qwen3-VL-4B-Instruct"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    clear = hub._answers.cache_clear
    clear()
    yield
    clear()


class _Missing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_any_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Missing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert hub.offline() == hub.missing(QWEN) == ""
    finally:
        server.shutdown()
        server.server_close()
    assert hub.offline() == ""  # asked once


def test_silence_ends_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        start = time.monotonic()
        assert hub.offline() == f"the Hub ({address}) could not be reached"
        assert time.monotonic() - start < 2
    assert f"the Hub ({address}) could not be reached" in hub.missing(QWEN)


def test_nothing_is_asked_where_it_is_not_wanted_or_not_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "_answers", lambda address: pytest.fail("asked"))
    assert hub.missing(str(tmp_path)) == ""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.offline() == "HF_HUB_OFFLINE is set"
    assert hub.missing("models/mine") == (
        "found no such folder and no copy in the cache, and HF_HUB_OFFLINE is set"
    )


def test_tpru_eval_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(cli.app, ["eval", "run", "models/mine"])
    assert isinstance(done.exception, FileNotFoundError)
    assert str(done.exception).startswith("models/mine: found no such folder")
    assert "\n" not in str(done.exception)
