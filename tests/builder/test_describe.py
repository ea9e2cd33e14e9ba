"""A model behind an endpoint: what it says is used, kept, asked for once; what it fails to say is a line."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.builds import Run, provenance
from support.frames import scenes
from support.results import contents, read

Reply = tuple[int, str]  # status, content of the message or body of the error
FINE = {
    "judge": '{"clean": true, "chronological": true, "order_visible": true}',
    "describe": '{"description": "a square going right"}',
    "contradict": '{"description": "a square going left"}',
}


class Stub:
    """An OpenAI-compatible server that answers as `reply(question, number of the request)` says."""

    def __init__(self) -> None:
        self.reply: Callable[[str, int], Reply] = lambda question, number: (200, FINE[question])
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = body["response_format"]["json_schema"]["name"]
        pictures = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
        assert 4 <= len(pictures) <= 8
        assert all(part["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/") for part in pictures)
        with self._lock:
            self.asked[question] += 1
            number = self.asked.total()
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            status, content = self.reply(question, number)
        finally:
            with self._lock:
                self.at_once -= 1
        message = {
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            ]
        }
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", **message}
        data = json.dumps(whole if status == 200 else {"error": {"message": content}}).encode()
        if content == "not even json":
            data = b"<html>busy</html>"
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        if status == 429:
            handler.send_header("Retry-After", "0")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


@pytest.fixture
def described(build: Run, stub: Stub, tmp_path: Path) -> Run:
    source = scenes(tmp_path / "in", takes=4)

    def run(out: str = "out", *options: object) -> dict[str, Any]:
        return build(source, out, "--endpoint", stub.url, "--model", "m", "--retries", 2, *options)

    return run


def test_what_the_model_says_is_in_the_rows(described: Run, stub: Stub, tmp_path: Path) -> None:
    manifest = described("out", "--negatives", "0.5")
    assert stub.asked == {"judge": 4, "describe": 4, "contradict": 4}
    origin = provenance(tmp_path / "out")
    wrong = 0
    for row in read(tmp_path / "out"):
        mismatch = origin[row["extra_info"]["row_id"]]["negative"] == "mismatch"
        assert f"These photos show a square going {'left' if mismatch else 'right'}." in row["problem"]
        wrong += mismatch
    assert wrong
    assert manifest["model"] == {"model": "m", "asked": ["judge", "describe", "contradict"]}
    assert stub.url not in (tmp_path / "out/manifest.json").read_text()


def test_nothing_is_asked_twice(
    described: Run, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-kept-to-itself")
    described()
    answers = [path for path in (tmp_path / "out.answers").rglob("*") if path.is_file()]
    assert len(answers) == 12
    assert not any(path.stat().st_mode & 0o077 for path in answers)  # what was paid for is its owner's
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-kept-to-itself" in path.read_bytes() for path in written)
    described("other", "--answers", tmp_path / "out.answers")
    assert stub.asked.total() == 12
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    described("third", "--answers", tmp_path / "out.answers", "--steps", "3")
    assert stub.asked.total() == 12


def test_what_the_model_rejects_is_left_out_and_listed(described: Run, stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda question, number: (
        200,
        '{"clean": true, "chronological": true, "order_visible": false}' if number == 1 else FINE[question],
    )
    manifest = described("out", "--concurrency", 1)
    assert manifest["left_out"] == {"rejected by the model": 1}
    (dropped,) = json.loads((tmp_path / "out/dropped.json").read_text())
    assert dropped["detail"] == "not order_visible"
    assert len({line["clip"] for line in provenance(tmp_path / "out").values()}) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(described: Run, stub: Stub, tmp_path: Path, status: int) -> None:
    stub.reply = lambda question, number: (status, "busy") if number % 3 == 1 else (200, FINE[question])
    described("out", "--concurrency", 1)
    assert stub.asked.total() > 12
    stub.reply = lambda question, number: (200, FINE[question])
    described("other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


MALFORMED = [
    "",
    "yes",
    "[]",
    "{}",
    '{"clean": "very", "chronological": true, "order_visible": true}',
    '{"clean": true, "chronological": true}',
    '{"clean": tru',
    "not even json",
]


@pytest.mark.parametrize("content", MALFORMED)
def test_malformed_answers_are_asked_for_again_then_listed(
    described: Run, stub: Stub, tmp_path: Path, content: str
) -> None:
    """The first clip's judgement is malformed once, the second's always."""
    stub.reply = lambda question, number: (200, content if number in (1, 5, 6, 7) else FINE[question])
    manifest = described("out", "--concurrency", 1)
    assert manifest["left_out"] == {"rejected by the model": 1}
    assert "no answer in the form asked for (judge)" in (tmp_path / "out/dropped.json").read_text()
    kept = [path.read_text() for path in (tmp_path / "out.answers").rglob("*.json")]
    assert len(kept) == 9
    assert all(isinstance(json.loads(text), dict) for text in kept)


def test_requests_run_at_once_but_not_more_than_said(described: Run, stub: Stub) -> None:
    def slow(question: str, number: int) -> Reply:
        time.sleep(0.05)
        return 200, FINE[question]

    stub.reply = slow
    described("out", "--concurrency", 3)
    assert 2 <= stub.most_at_once <= 3


def test_a_server_that_is_too_slow_or_gone_is_one_line_and_what_is_done_is_kept(
    described: Run, stub: Stub
) -> None:
    def stuck(question: str, number: int) -> Reply:
        if number > 6:
            time.sleep(1)
        return 200, FINE[question]

    stub.reply = stuck
    with pytest.raises(SystemExit) as stop:
        described("out", "--concurrency", 1, "--timeout", "0.2", "--retries", 0)
    said = str(stop.value.code)
    assert said.startswith(f"tpru: --endpoint {stub.url}: found no answer after 1 tries")
    assert said.endswith("run the same command again")
    assert "\n" not in said
    stub.reply = lambda question, number: (200, FINE[question])
    stub.asked.clear()
    described()
    assert stub.asked.total() == 12 - 6


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9", "nonsense"])
def test_a_model_on_this_machine_needs_no_proxy(
    described: Run, stub: Stub, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    described("out", "--endpoint", stub.url.replace("127.0.0.1", "localhost"))
    assert stub.asked.total() == 12


@pytest.mark.parametrize("proxy", ["socks5://me:hidden@127.0.0.1:9", "http://me:hidden@127.0.0.1:9", "no"])
def test_elsewhere_the_variable_of_the_proxy_is_named(
    described: Run, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(SystemExit) as stop:
        described("out", "--endpoint", "http://me:private@models.invalid/v1", "--retries", 0)
    said = str(stop.value.code)
    assert said.startswith("tpru: --endpoint http://***@models.invalid/v1: ")
    assert "all_proxy sends requests for models.invalid to a proxy: set no_proxy=models.invalid" in said
    assert "\n" not in said
    assert "hidden" not in said
    assert "private" not in said


def test_the_key_stays_out_of_messages(described: Run, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    stub.reply = lambda question, number: (401, "no such key: sk-0123456789")
    with pytest.raises(SystemExit) as stop:
        described()
    assert "no such key: ***" in str(stop.value.code)


def test_a_wrong_address_or_key_is_one_line(
    described: Run, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.reply = lambda question, number: (401, "no such key")
    with pytest.raises(SystemExit) as stop:
        described()
    assert "found status 401" in str(stop.value.code)
    assert "no such key" in str(stop.value.code)
    with pytest.raises(SystemExit) as stop:
        described("out", "--endpoint", "http://127.0.0.1:9/v1", "--retries", 0)
    assert "found no answer after 1 tries" in str(stop.value.code)
    with pytest.raises(SystemExit) as stop:
        described("out", "--ask", "praise")
    assert "--ask: found 'praise', expected judge, describe, contradict" in capsys.readouterr().err
    assert stop.value.code == 2
