"""An OpenAI-compatible endpoint of one machine, that answers by rule, and fails as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Asked:
    """One request: its text with <image> where a picture was, and the pictures' bytes."""

    text: str
    images: list[bytes]
    body: dict[str, Any]


Rule = Callable[[Asked], str]
Tops = Callable[[Asked], Mapping[str, float]]
Fault = Callable[
    [int, Asked], "tuple[int, bytes] | float | None"
]  # status and body, seconds to wait, nothing


def by_prompt(asked: Asked) -> str:
    """A letter, or an order where none is listed, that the prompt's words decide, at times not to be read."""
    number = int(hashlib.sha256(asked.text.encode()).hexdigest(), 16)
    letters = re.findall(r"^([A-E])[.)] ", asked.text, re.MULTILINE) or ["A", "B"]
    if number % 5 == 0:
        return "I see several pictures."
    letter = letters[number % len(letters)]
    thought = "<think>A is too early, C late.</think>"
    return (
        f"{thought}<answer>{letter}</answer>"
        if number % 3
        else f"{thought}\n<answer>\\boxed{{{letter}}}</answer>"
    )


@dataclass
class Endpoint:
    """What is running: `asked` has every completion that was answered with 200.

    `root` is where its models come from, as vLLM lists it; None for a server that does not say so. `finish`
    is why a response ends before `stop`.
    """

    url: str
    root: str | None = None
    finish: str = "stop"
    asked: list[Asked] = field(default_factory=list)
    tried: int = 0


def _picture(url: str) -> bytes:
    return (
        Path(url[7:]).read_bytes() if url.startswith("file://") else base64.b64decode(url.partition(",")[2])
    )


def _asked(body: dict[str, Any]) -> Asked:
    text = ""
    images: list[bytes] = []
    for message in body["messages"]:
        content = message["content"]
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                text += part["text"]
            else:
                images.append(_picture(part["image_url"]["url"]))
                text += "<image>"
    return Asked(text, images, body)


def _logprobs(tops: Mapping[str, float]) -> dict[str, Any]:
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in tops.items()]
    first = max(listed, key=lambda top: float(str(top["logprob"])))
    return {"content": [{**first, "top_logprobs": listed}]}


@contextmanager
def endpoint(
    rule: Rule = by_prompt,
    *,
    fault: Fault = lambda number, asked: None,
    models: tuple[str, ...] = ("tiny",),
    tops: Tops | None = None,
) -> Iterator[Endpoint]:
    """Serve until the block ends; `fault` gets the number of the request, from 0, and the request.

    `tops` gives the likeliest tokens of the next position, with their log-probabilities.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            more = {} if running.root is None else {"root": running.root}
            listed = [{"id": model, "object": "model", **more} for model in models]
            self.answer(200, json.dumps({"object": "list", "data": listed}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = _asked(body)
            with lock:
                number, running.tried = running.tried, running.tried + 1
            found = fault(number, asked)
            if isinstance(found, tuple):
                return self.answer(*found)
            if found is not None:
                time.sleep(found)
            with lock:
                running.asked.append(asked)
            choices = [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": rule(asked)},
                    "finish_reason": running.finish if body.get("stop") else "stop",
                    "logprobs": _logprobs(tops(asked)) if tops and body.get("logprobs") else None,
                }
                for i in range(body.get("n") or 1)
            ]
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            self.answer(200, json.dumps({**reply, "choices": choices, "usage": usage}).encode())

        def answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "10")  # the client would wait for seconds
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
