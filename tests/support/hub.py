"""A Hub of one machine: serves a folder as a data set repository, as far as `datasets` asks for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMITS = {"main": "1" * 40, "v1": "2" * 40}


def _handler(repository: str, revisions: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    folders = {**revisions, **{COMMITS[name]: folder for name, folder in revisions.items()}}
    commit = {**COMMITS, **{value: value for value in COMMITS.values()}}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            api = f"/api/datasets/{repository}"
            if path.startswith(f"/datasets/{repository}/resolve/"):
                revision, _, name = path.split("/resolve/", 1)[1].partition("/")
                return self.file(revision, name)
            if path == api or path.startswith(f"{api}/revision/"):
                revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
                return self.known(revision, self.info)
            if path.startswith(f"{api}/tree/"):
                revision, _, below = path.split("/tree/", 1)[1].partition("/")
                return self.known(revision, lambda known: self.tree(known, below))
            return self.missing("Repo")

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            path = unquote(urlparse(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "/paths-info/" not in path:
                return self.missing("Entry")
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            revision = path.rpartition("/")[2]
            return self.json([entry for entry in self.tree(revision, "") if entry["path"] in wanted])

        def known(self, revision: str, content: Callable[[str], object]) -> None:
            if revision not in folders:
                return self.missing("Revision")
            return self.json(content(revision))

        def info(self, revision: str) -> dict[str, object]:
            files = (entry for entry in self.tree(revision, "") if entry["type"] == "file")
            names = [{"rfilename": entry["path"]} for entry in files]
            return {
                "id": repository,
                "sha": commit[revision],
                "siblings": names,
                "private": False,
                "tags": [],
            }

        def tree(self, revision: str, below: str) -> list[dict[str, object]]:
            folder, entries = folders[revision], []
            for path in sorted((folder / below).rglob("*")):
                oid = hashlib.sha1(str(path).encode()).hexdigest()
                entry = {"path": str(path.relative_to(folder)), "oid": oid}
                size = path.stat().st_size if path.is_file() else 0
                entries.append({**entry, "type": "file" if path.is_file() else "directory", "size": size})
            return entries

        def file(self, revision: str, name: str) -> None:
            path = folders.get(revision, Path("/nowhere")) / name
            if not path.is_file():
                return self.missing("Entry")
            data = path.read_bytes()
            headers = {"ETag": hashlib.sha1(data).hexdigest(), "X-Repo-Commit": commit[revision]}
            if asked := self.headers.get("Range", "").removeprefix("bytes="):
                first, _, last = asked.partition("-")
                stop = min(int(last), len(data) - 1) if last else len(data) - 1
                headers["Content-Range"] = f"bytes {first}-{stop}/{len(data)}"
                return self.answer(206, data[int(first) : stop + 1], headers)
            return self.answer(200, data, headers)

        def json(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def missing(self, what: str) -> None:
            self.answer(404, b"{}", {"X-Error-Code": f"{what}NotFound", "X-Error-Message": "not here"})

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def hub(repository: str, revisions: dict[str, Path]) -> Iterator[str]:
    """Yields the address to give as HF_ENDPOINT; `revisions` maps names of COMMITS to folders."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repository, revisions))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
