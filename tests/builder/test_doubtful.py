"""The page of clips near the threshold: names of others are text on it."""

import base64
import hashlib
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from tpru_verl.builder import doubtful
from tpru_verl.builder.doubtful import Measured, write_page


def test_nothing_but_our_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    monkeypatch.setattr(doubtful, "read_clip", lambda path, number: [0])
    monkeypatch.setattr(doubtful, "read_images", lambda path, number, places: [buffer.getvalue()])
    clip = Measured(0.0, "<script>alert(1)</script>\"'", (0, 0), 0.5)
    write_page(tmp_path / "clips.html", tmp_path, [clip], 0.5)
    page = (tmp_path / "clips.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
