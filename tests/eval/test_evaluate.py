"""`tpru eval` as a user calls it: an endpoint by rule, resumption, faults, comparison, the page."""

import base64
import errno
import gc
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.benchmark_rows import lego_tsv, muirbench_hub, tpru_hub
from support.endpoint import Asked, by_prompt, endpoint
from support.rows import picture, reordering, write_parquet

from tpru_verl.clients import is_loopback
from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.eval.benchmarks import BENCHMARKS
from tpru_verl.eval.engines.base import Request, Sampling, parts_of
from tpru_verl.eval.engines.endpoint import Endpoint, reply_of
from tpru_verl.eval.engines.local import Local
from tpru_verl.eval.item import Item
from tpru_verl.eval.results import read_results
from tpru_verl.eval.run import Evaluation, evaluate_rows
from tpru_verl.eval.store import Store
from tpru_verl.files import locked
from tpru_verl.sample import Task

Tpru = Callable[..., tuple[object, str, str]]


@pytest.fixture
def tpru(tpru_eval: Tpru) -> Tpru:
    return tpru_eval


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """Options that name three benchmarks' fixtures."""
    muir, lego = muirbench_hub(tmp_path / "muir"), lego_tsv(tmp_path / "lego")
    sources = {"tpru-test": tpru_hub(tmp_path / "tpru"), "muirbench": muir, "lego-puzzles": lego}
    data = [part for name, path in sources.items() for part in ("--data", f"{name}={path}")]
    return ["--bench", ",".join(sources), *data]


def asking(url: str, out: Path, source: Path) -> list[object]:
    """Arguments of a run over rows of TPRU-Test."""
    return ["tiny", "--base-url", url, "--out", out, "--data", f"tpru-test={source}"]


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


class TestEndpoint:
    def test_three_benchmarks(self, tpru: Tpru, rows: list[str], tmp_path: Path) -> None:
        with endpoint() as server:
            code, out, err = tpru("tiny", "--base-url", server.url, "--out", tmp_path / "out", *rows)
        assert code == 0, err
        assert "images of 16,384 to 36,864 pixels" in err
        assert "found 5 rows, published 461" in err
        summary = summary_of(tmp_path / "out")
        assert {name: group["n"] for name, group in summary["benchmarks"].items()} == {
            "tpru-test": 5,
            "muirbench": 4,
            "lego-puzzles": 3,
        }
        assert summary["settings"]["min_pixels"] == 16384
        lines = read_results(tmp_path / "out/tpru-test.jsonl")
        answers = {asked.text: by_prompt(asked) for asked in server.asked}
        for line in lines:
            (sample,) = line["samples"]
            assert sample["response"] == answers[sample["prompt"]]
            assert sample["correct"] == (sample["parsed"] == line["answer"]) == (line["score"] == 1)
        group = summary["benchmarks"]["tpru-test"]
        assert group["accuracy"] == sum(line["score"] for line in lines) / 5
        assert group["low"] <= group["accuracy"] <= group["high"]
        assert "TPRU-Test" in out
        assert "temporal reordering" not in out  # one task alone needs no table

    def test_pictures_stand_in_their_places_with_the_pixels_of_training(
        self, tpru: Tpru, tmp_path: Path
    ) -> None:
        from qwen_vl_utils import fetch_image

        row = reordering(1, images=[picture(i, (640, 480), "JPEG") for i in range(4)])
        source = write_parquet(tmp_path / "rows.parquet", [row])
        with endpoint() as server:
            tpru(*asking(server.url, tmp_path / "out", source))
        (asked,) = server.asked
        assert asked.text.startswith(row["problem"])
        for sent, stored in zip(asked.images, row["images"], strict=True):
            element = {"image": Image.open(io.BytesIO(stored)), "min_pixels": 16384, "max_pixels": 36864}
            assert Image.open(io.BytesIO(sent)).tobytes() == fetch_image(element).tobytes()

    def test_a_second_run_asks_nothing_again(self, tpru: Tpru, rows: list[str], tmp_path: Path) -> None:
        with endpoint() as server:
            args = ["tiny", "--base-url", server.url, "--out", tmp_path / "out", *rows]
            tpru(*args)
            first, asked = summary_of(tmp_path / "out"), len(server.asked)
            code, _, err = tpru(*args)
            assert (code, len(server.asked)) == (0, asked)
            assert "5 answers are there already, 0 to be asked" in err
            again = summary_of(tmp_path / "out")
            assert again["benchmarks"]["muirbench"]["tasks"] == first["benchmarks"]["muirbench"]["tasks"]
            tpru(*args, "--style", "direct")
            assert len(server.asked) == 2 * asked

    def test_a_run_that_was_ended_goes_on(self, tpru: Tpru, rows: list[str], tmp_path: Path) -> None:
        up = [False]

        def gone(number: int, asked: Asked) -> tuple[int, bytes] | None:
            return (404, b'{"error": {"message": "no such model"}}') if number >= 7 and not up[0] else None

        with endpoint(fault=gone) as server:
            args = ["tiny", "--base-url", server.url, "--out", tmp_path / "out", "--concurrency", 1, *rows]
            code, _, _ = tpru(*args)
            assert "no such model" in str(code)
            assert not (tmp_path / "out/summary.json").exists()
            with (tmp_path / "out/responses.jsonl").open("ab") as file:
                file.write(b'{"key": "abc", "tex')  # killed while it wrote
            up[0] = True
            code, _, err = tpru(*args)
            assert code == 0, err
        assert len(server.asked) == 12
        assert len({(asked.text, *asked.images) for asked in server.asked}) == 12

    def test_samples(self, tpru: Tpru, tmp_path: Path) -> None:
        counter = iter(range(1000))
        source = tpru_hub(tmp_path / "rows")
        with endpoint(lambda asked: f"<think>x</think><answer>{'ABB'[next(counter) % 3]}</answer>") as server:
            args = asking(server.url, tmp_path / "out", source)
            code, out, err = tpru(*args, "--n", 3, "--temperature", 1)
        assert code == 0, err
        group = summary_of(tmp_path / "out")["benchmarks"]["tpru-test"]
        # One row's answer is B, which two of three samples say, one's is A.
        assert group["accuracy"] == pytest.approx((2 / 3 + 1 / 3) / 5)
        assert group["pass_at"]["3"] == pytest.approx(2 / 5)
        assert group["majority"] == pytest.approx(1 / 5)
        assert "pass@3 40.0%" in out

    def test_circular(self, tpru: Tpru, tmp_path: Path) -> None:
        source = tpru_hub(tmp_path / "rows")

        def knows(asked: Asked) -> str:
            """The option that reads 3 1 4 2, wherever it stands: the truth of the row whose answer is B."""
            (letter,) = re.findall(r"^([A-E])\. 3 1 4 2$", asked.text, re.MULTILINE)
            return f"<think>x</think><answer>{letter}</answer>"

        for name, rule in (("knows", knows), ("letter", lambda asked: "<think>x</think><answer>B</answer>")):
            with endpoint(rule) as server:
                assert tpru(*asking(server.url, tmp_path / name, source), "--circular")[0] == 0
                assert len(server.asked) == 25
        group = summary_of(tmp_path / "knows")["benchmarks"]["tpru-test"]
        assert (group["accuracy"], group["plain"]) == (0.2, 0.2)
        group = summary_of(tmp_path / "letter")["benchmarks"]["tpru-test"]
        assert (group["accuracy"], group["plain"]) == (0, 0.2)


class TestFaults:
    def run(
        self, tpru: Tpru, tmp_path: Path, fault: Any, *more: object
    ) -> tuple[object, dict[str, Any], str]:
        source = tpru_hub(tmp_path / "rows")
        with endpoint(fault=fault) as server:
            code, _, err = tpru(*asking(server.url, tmp_path / "out", source), *more)
        found = tmp_path / "out/summary.json"
        return code, json.loads(found.read_text())["benchmarks"]["tpru-test"] if found.exists() else {}, err

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_passing_faults_are_tried_again(self, tpru: Tpru, tmp_path: Path, status: int) -> None:
        code, group, err = self.run(
            tpru, tmp_path, lambda number, asked: (status, b"{}") if number < 3 else None
        )
        assert (code, group["failed"], group["n"]) == (0, 0, 5), err

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"<html>", "no completion"),
            (b'{"choices": []}', "found 0 choices, expected 1"),
            (b'{"choices": [{"message": {"content": null}, "index": 0}]}', "without content"),
            (b'{"choices": {"0": "B"}}', "found 0 choices, expected 1"),
            (b'{"choices": [{"message": {"content": 7}}]}', "a content of the kind int"),
            (b'{"choices": [{"message": {"content": {"foo": 1}}}]}', "a content of the kind"),
            (
                b'{"choices": [{"message": {"content": [{"type": "text", "text": null}]}}]}',
                "of the kind NoneType",
            ),
            (b'{"error": {"message": "overloaded"}}', "found 0 choices, expected 1: overloaded"),
            (b"[" * 50_000, "no completion"),
            (b'{"choices": [{"message": {"content": [{"type": "image_url"}]}}]}', "of the kind image_url"),
            (b'{"choices": ["B"]}', "without content"),
        ],
    )
    def test_malformed_answers_fail_their_row(
        self, tpru: Tpru, tmp_path: Path, body: bytes, said: str
    ) -> None:
        broken = "4 3 2 1\nD"  # in every prompt
        code, group, err = self.run(
            tpru,
            tmp_path,
            lambda number, asked: (200, body) if number == 0 and broken in asked.text else None,
        )
        assert (code, group["failed"], group["n"]) == (0, 1, 5), err
        assert said in err

    def test_a_refused_request_names_the_row_and_the_servers_reason(self, tpru: Tpru, tmp_path: Path) -> None:
        reason = b'{"error": {"message": "maximum context length is 512 tokens, the prompt has 700"}}'
        code, group, err = self.run(
            tpru, tmp_path, lambda number, asked: (400, reason) if number == 1 else None
        )
        assert (code, group["failed"]) == (0, 1)
        assert "TPRU-Test: 1 of 5 rows have no response and count as wrong 1 request failed" in err
        assert re.search(r"row test-00000-of-00001.parquet:\d failed: HTTP 400: maximum context length", err)

    def test_all_requests_refused_is_no_measurement(self, tpru: Tpru, tmp_path: Path) -> None:
        code, group, err = self.run(tpru, tmp_path, lambda number, asked: (400, b"{}"))
        assert (code, group["failed"], group["failures"]["requests"]["rows"]) == (3, 5, 5)
        assert "5 of 5 rows have no response and count as wrong: the accuracy of 0 measures nothing" in err
        assert not (tmp_path / "out/responses.jsonl").exists()

    def test_slow_answers(self, tpru: Tpru, tmp_path: Path) -> None:
        code, group, err = self.run(
            tpru,
            tmp_path,
            lambda number, asked: 1.0 if number == 0 else None,
            "--timeout",
            0.4,
            "--retries",
            0,
        )
        assert (code, group["failed"]) == (0, 1)
        assert "no answer within 0.4 s" in err

    def test_endpoint_down(self, tpru: Tpru, tmp_path: Path) -> None:
        source = tpru_hub(tmp_path / "rows")
        with endpoint() as server:
            pass
        code, _, _ = tpru(*asking(server.url, tmp_path / "new/o", source))
        assert not (tmp_path / "new").exists()
        assert isinstance(code, str)
        assert re.fullmatch(r"tpru: http://127.*/v1: no answer \(.*\); is the server running\?", code)

    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (404, "no such page; most servers answer at http://127.0.0.1:"),
            (401, "HTTP 401: no such page; expected a key in OPENAI_API_KEY"),
        ],
    )
    def test_an_error_that_ends_the_run_is_one_line(
        self, tpru: Tpru, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, said: str
    ) -> None:
        """Many requests fail at once; asyncio printed the traceback of each but the first."""
        source = write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(40)])
        reply = (status, b'{"error": {"message": "no such page"}}')
        with endpoint(fault=lambda number, asked: reply) as server:
            url = server.url.removesuffix("/v1")
            args = ["tiny", "--base-url", url, "--out", tmp_path / "out", "--rows", source]
            code, _, err = tpru(*args)
        gc.collect()  # asyncio complains when a task is thrown away
        assert said in str(code)
        assert str(code).endswith("/v1: add /v1 to the URL") == (status == 404)
        assert "\n" not in str(code)
        assert "never retrieved" not in caplog.text + err

    def test_wrong_model(self, tpru: Tpru, tmp_path: Path) -> None:
        source = tpru_hub(tmp_path / "rows")
        with endpoint(models=("one", "two")) as server:
            code, _, _ = tpru(
                "x", "--base-url", server.url, "--out", tmp_path / "o", "--data", f"tpru-test={source}"
            )
        assert code == f"tpru: {server.url}: found models one, two; expected x"

    def test_an_image_that_cannot_be_decoded_is_a_failed_row(self, tpru: Tpru, tmp_path: Path) -> None:
        broken = picture(1)[:200] + bytes(100)
        rows = [reordering(0), reordering(1, images=[picture(0), broken, picture(2), picture(3)])]
        source = write_parquet(tmp_path / "rows.parquet", rows)
        with endpoint() as server:
            code, _, err = tpru(*asking(server.url, tmp_path / "out", source))
        group = summary_of(tmp_path / "out")["benchmarks"]["tpru-test"]
        assert (code, group["n"], group["failed"]) == (0, 2, 1)
        assert "row rows.parquet:1 failed: images[1]: found an image that can't be decoded" in err
        assert "images[1]: found an image" in (tmp_path / "out/page.html").read_text()

    @pytest.mark.parametrize(
        ("number", "code", "said"),
        [
            (signal.SIGINT, 130, "stopped by SIGINT; the answers are in"),
            (signal.SIGTERM, 143, "stopped by SIGTERM; the answers are in"),
            (signal.SIGHUP, 129, "stopped by SIGHUP; the answers are in"),
        ],
    )
    def test_a_signal_keeps_the_answers(
        self, tmp_path: Path, number: signal.Signals, code: int, said: str
    ) -> None:
        source = write_parquet(tmp_path / "rows.parquet", [reordering(seed) for seed in range(20)])
        program = "from tpru_verl.cli import main; main()"
        with endpoint(fault=lambda request, asked: 0.2) as server:
            args = ["eval", "tiny", "--base-url", server.url, "--out", tmp_path / "out", "--concurrency", 2]
            command = [sys.executable, "-c", program, *map(str, args), "--data", f"tpru-test={source}"]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                while len(server.asked) < 4 and process.poll() is None:
                    time.sleep(0.05)
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
            assert process.returncode == code
            assert said in " ".join(err.split())
            kept = (tmp_path / "out/responses.jsonl").read_bytes().count(b"\n")
            before = len(server.asked)
            assert 2 <= kept <= before
            assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
            assert len(server.asked) == before + 20 - kept

    def test_disk_full(self, tpru: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full(io.BytesIO):
            def write(self, data: Any) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(
            Store, "__init__", lambda store, path: store.__dict__.update(path=path, _replies={}, _file=Full())
        )
        code, group, _ = self.run(tpru, tmp_path, lambda number, asked: None)
        assert group == {}
        assert "No space left on device; 0 responses are kept, the same command goes on" in str(code)

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["--bench", "x"], "--bench: found 'x'"),
            (["--data", "x"], "--data: found 'x', expected the form KEY=VALUE"),
            (["--data", "muirbench=x"], "--data: found 'muirbench'"),
            (["--n", "2"], "n: found 2 at temperature 0"),
            (
                ["--max-pixels", "100"],
                "--min-pixels, --max-pixels: found 16384 and 100 (the default of --min-pixels), expected 0 <",
            ),
            (
                ["--min-pixels", "1", "--max-pixels", "100"],
                "--max-pixels: found 100, expected 784 (one token)",
            ),
            (
                ["--style", "bear"],
                "--style: found 'bear', expected tpru, direct, benchmark, paper, bare or a .jinja file",
            ),
            (["--out", "rows.txt"], "--out rows.txt: found a file, expected a folder or a new name"),
            (["--out", "rows.txt/o"], "rows.txt, expected a folder there; give another place"),
            (["--option", "n=2"], "--option: found 'n', which `tpru eval` sets itself"),
            (
                ["rows@test"],
                "m: found rows@test after it, expected one model; rows are given as --rows rows@te",
            ),
        ],
    )
    def test_a_wrong_option_is_found_before_the_model_is_looked_for(
        self, tpru: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "rows.txt").touch()
        code, _, err = tpru("m", *args)
        assert code == 2
        assert err.startswith("tpru: ")
        assert said in err

    def test_a_command_that_is_misspelt_names_its_neighbour(self, tpru: Tpru) -> None:
        code, _, err = tpru("comapre", "a", "b")
        assert (code, err) == (2, "tpru: comapre: found a b after it, expected `tpru eval compare`")

    def test_a_source_that_is_not_there(self, tpru: Tpru, tmp_path: Path) -> None:
        args = ["--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "o"]
        code, _, _ = tpru("m", *args, "--data", "tpru-test=/nowhere.parquet")
        assert str(code).startswith("tpru: ")
        assert "no such file" in str(code)
        assert "\n" not in str(code)

    def test_without_the_hub_the_options_for_other_rows_are_named(self, tpru: Tpru, tmp_path: Path) -> None:
        code, _, _ = tpru("m", "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path / "o")
        assert "Stephengzk/TPRU-test: found no copy in the cache, and HF_HUB_OFFLINE is set; " in str(code)
        assert str(code).endswith("--data tpru-test=FILE takes a local copy, --rows FILE your own rows")


class TestCompare:
    @pytest.fixture
    def runs(self, tpru: Tpru, tmp_path: Path) -> tuple[Path, Path]:
        source = tpru_hub(tmp_path / "rows")
        for name, letter in (("a", "B"), ("b", "A")):
            with endpoint(
                lambda asked, letter=letter: f"<think>x</think><answer>{letter}</answer>"
            ) as server:
                tpru(*asking(server.url, tmp_path / name, source))
        return tmp_path / "a", tmp_path / "b"

    def test_flips_and_verdict(self, tpru: Tpru, runs: tuple[Path, Path], tmp_path: Path) -> None:
        code, out, err = tpru("compare", *runs, "--json", tmp_path / "gain.json")
        assert code == 0, err
        assert "no difference that 5 rows of " in out
        found = json.loads((tmp_path / "gain.json").read_text())["tpru-test"]
        assert [(flip["answer"], flip["gained"]) for flip in found["flips"]] == [("B", False), ("A", True)]
        assert found["difference"]["mcnemar"] == 1

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (["--style", "direct"], "style: tpru and direct"),
            (["--max-pixels", "50176"], "max_pixels: 36864 and 50176"),
            (["--limit", "3"], "rows: 2 in one alone"),
        ],
    )
    def test_refuses_what_was_not_asked_the_same(
        self, tpru: Tpru, runs: tuple[Path, Path], tmp_path: Path, change: list[str], said: str
    ) -> None:
        source = tmp_path / "rows/test-00000-of-00001.parquet"
        with endpoint() as server:
            tpru(*asking(server.url, tmp_path / "c", source), *change)
        code, _, _ = tpru("compare", runs[0], tmp_path / "c")
        assert "did not ask the same" in str(code)
        assert said in str(code)
        code, out, _ = tpru("compare", runs[0], tmp_path / "c", "--anyway")
        assert code == 0
        assert said in " ".join(out.split())

    def test_other_content_under_the_same_ids(self, tpru: Tpru, runs: tuple[Path, Path]) -> None:
        lines = read_results(runs[1] / "tpru-test.jsonl")
        text = "".join(json.dumps({**line, "digest": "0"}) + "\n" for line in lines)
        (runs[1] / "tpru-test.jsonl").write_text(text)
        assert "rows: 5 of one id with other content" in str(tpru("compare", *runs)[0])

    def test_no_run(self, tpru: Tpru, tmp_path: Path) -> None:
        assert "found no summary.json" in str(tpru("compare", tmp_path, tmp_path)[0])


def test_page_holds_all_that_it_shows(
    tpru: Tpru, rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, n in (("tpru-test", 5), ("muirbench", 4), ("lego-puzzles", 3)):
        monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], rows=n, md5=""))
    with endpoint(lambda asked: "<script>alert(1)</script>\u2028\ud83d") as server:
        code, _, err = tpru("tiny", "--base-url", server.url, "--out", tmp_path / "out", *rows)
    assert code == 0, err
    page = (tmp_path / "out/page.html").read_text()
    assert "<script>alert" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("<article") == 12
    assert page.count("<img") == sum(asked.text.count("<image>") for asked in server.asked)
    published = ("GPT-4o", "75.7 %", "TPRU-32B", "23.4 %")
    assert all(number in page for number in published)
    with endpoint() as server:  # a part of the rows is another benchmark than the published one
        tpru("tiny", "--base-url", server.url, "--out", tmp_path / "out", *rows, "--limit", 2)
    page = (tmp_path / "out/page.html").read_text()
    assert not [number for number in published if number in page]


SIDES = st.integers(4, 3000)


@settings(deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from([(16384, 36864), (3136, 3136), (784, 12845056), (100352, 602112)]),
    st.sampled_from([28, 32]),
)
def test_sizes_are_those_of_training(width: int, height: int, bounds: tuple[int, int], factor: int) -> None:
    from qwen_vl_utils.vision_process import smart_resize

    least, most = bounds
    if most < factor**2:
        return
    try:
        rows, columns = smart_resize(height, width, factor, least, most)
    except ValueError:
        rows = columns = 0
    if min(rows, columns) <= 0:
        with pytest.raises(ValueError, match=r"expected sides within|too narrow"):
            Bounds(least, most, factor).target(width, height)
    else:
        assert Bounds(least, most, factor).target(width, height) == (columns, rows)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_colours_are_those_of_training(mode: str) -> None:
    from qwen_vl_utils import fetch_image

    image = Image.open(io.BytesIO(picture(3, (300, 200)))).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    element = {"image": Image.open(io.BytesIO(buffer.getvalue())), "min_pixels": 16384, "max_pixels": 36864}
    assert Bounds().prepared(buffer.getvalue()).tobytes() == fetch_image(element).tobytes()


class TestLocal:
    def local(self, checkpoint: Path, **changes: Any) -> Local:
        options = {"min_pixels": 3136, "max_pixels": 3136, "max_model_len": None} | changes
        return Local(str(checkpoint), Sampling(max_tokens=32), **options)

    def requests(self, images: int = 4) -> list[Request]:
        tags = "<image>" * images
        item = Item(
            "row-7", f"Which? {tags}", "A", tuple(picture(i, (56, 56)) for i in range(images)), {"A": "x"}
        )
        return [Request("k", item, item.problem)]

    def test_a_context_too_short_names_rows_and_tokens(self, checkpoint: Path) -> None:
        engine = self.local(checkpoint, max_model_len=40)
        with pytest.raises(
            ValueError, match=r"found 1 rows too long for 40 tokens, 32 .*: row-7 \(\d+ tokens\)"
        ):
            engine.start(self.requests())

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no config\.json in it"):
            self.local(tmp_path)

    @pytest.mark.parametrize("place", ["", "actor", "actor/huggingface", ".."])
    def test_a_checkpoint_in_shards_says_how_to_export_it(self, tmp_path: Path, place: str) -> None:
        step = tmp_path / "checkpoints/global_step_60"
        (step / "actor/huggingface").mkdir(parents=True)
        (step / "actor/huggingface/config.json").write_text("{}")
        (step / "actor/model_world_size_1_rank_0.pt").touch()
        with pytest.raises(ValueError, match=r"`tpru export .*checkpoints.* OUT` and evaluate OUT"):
            self.local(step / place)

    def test_a_model_trained_on_is_another_one(self, checkpoint: Path, tmp_path: Path) -> None:
        import shutil

        copy = shutil.copytree(checkpoint, tmp_path / "model")
        before = self.local(copy).identity
        (copy / "model.safetensors").touch()
        assert self.local(copy).identity != before


def completion(content: object, **more: object) -> SimpleNamespace:
    choice = SimpleNamespace(message=SimpleNamespace(content=content, **more), finish_reason="stop")
    return SimpleNamespace(choices=[choice], usage=None)


THINKING = {
    "type": "thinking",
    "thinking": [{"type": "text", "text": "C? "}, {"type": "text", "text": "No."}],
}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (completion("B"), "B"),
        (
            completion([{"type": "text", "text": "<answer>"}, {"type": "text", "text": "B</answer>"}]),
            "<answer>B</answer>",
        ),
        (completion([{"type": "text", "text": {"value": "B", "annotations": []}}]), "B"),
        (completion([THINKING, {"type": "text", "text": "B"}]), "<think>C? No.</think>B"),
        (completion([{"type": "reasoning", "text": "C? No."}, "B"]), "<think>C? No.</think>B"),
        (completion([THINKING]), "<think>C? No.</think>"),
        (completion("B", reasoning_content="C? No."), "<think>C? No.</think>B"),
        (completion(None, reasoning=[{"type": "text", "text": "C? No."}]), "<think>C? No.</think>"),
        (completion([{"type": "text", "text": "B"}], reasoning="C? No."), "<think>C? No.</think>B"),
        (completion([]), ""),
    ],
)
def test_each_form_of_a_message_is_read(found: Any, text: str) -> None:
    assert reply_of(found, 1).texts == [text]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "thinking"]), inner)
    ),
)


@given(JSON, JSON)
def test_any_content_is_text_or_refused_in_one_line(content: object, reasoning: object) -> None:
    refused = ""
    try:
        texts = reply_of(completion(content, reasoning=reasoning), 1).texts
    except ValueError as error:
        texts, refused = [], str(error)
    assert all(isinstance(text, str) for text in texts)
    assert "\n" not in refused


@pytest.mark.parametrize(
    "record", [{"texts": [["B"]], "finish": ["stop"]}, {"texts": "B"}, {"texts": []}, {"x": 1}]
)
def test_a_stored_reply_that_is_no_text_is_asked_again(
    tpru: Tpru, tmp_path: Path, record: dict[str, object]
) -> None:
    source, replies = tpru_hub(tmp_path / "rows"), tmp_path / "out/responses.jsonl"
    with endpoint() as server:
        args = asking(server.url, tmp_path / "out", source)
        assert tpru(*args)[0] == 0
        first, *others = replies.read_text().splitlines()
        replies.write_text(
            "\n".join([json.dumps({"key": json.loads(first)["key"], **record}), *others]) + "\n"
        )
        code, _, err = tpru(*args)
        assert (code, len(server.asked)) == (0, 6), err
        assert "1 stored replies are no text and will be asked again" in err
        code, _, err = tpru(*args)
        assert (code, len(server.asked)) == (0, 6)
        assert "no text" not in err


class TestProxy:
    @pytest.mark.parametrize("name", ["all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY"])
    @pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9", "nonsense"])
    def test_a_server_on_this_machine_needs_none(
        self, tpru: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str
    ) -> None:
        monkeypatch.setenv(name, proxy)
        with endpoint() as server:
            args = asking(
                server.url.replace("127.0.0.1", "localhost"), tmp_path / "out", tpru_hub(tmp_path / "rows")
            )
            code, _, err = tpru(*args)
        assert code == 0, err

    @pytest.mark.parametrize(
        "proxy", ["socks5://me:hidden@127.0.0.1:9", "http://me:hidden@127.0.0.1:9", "nonsense"]
    )
    def test_elsewhere_the_variable_is_named(
        self, tpru: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
    ) -> None:
        monkeypatch.setenv("all_proxy", proxy)
        code, _, err = tpru(
            *asking("http://models.invalid/v1", tmp_path / "out", tpru_hub(tmp_path / "rows"))
        )
        assert str(code).startswith("tpru: http://models.invalid/v1: ")
        assert "all_proxy sends requests for models.invalid to a proxy: set no_proxy=models.invalid" in str(
            code
        )
        assert "\n" not in str(code)
        assert "hidden" not in f"{code}{err}"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "api.localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback(f"{host}.example.org")


def test_secrets_stay_out_of_all_that_is_written(tpru: Tpru, tmp_path: Path) -> None:
    def refuses(number: int, asked: Asked) -> tuple[int, bytes] | None:
        return (400, b'{"error": {"message": "bad key hidden-2, user hidden-1"}}') if number == 1 else None

    options = [
        "api_key=hidden-2",
        'extra={"Authorization": "Bearer hidden-3"}',
        "password=12345678",
        "top_k=20",
    ]
    with endpoint(fault=refuses) as server:
        url = server.url.replace("http://", "http://user:hidden-1@")
        args = asking(url, tmp_path / "out", tpru_hub(tmp_path / "rows"))
        code, out, err = tpru(*args, *(part for option in options for part in ("--option", option)))
        assert code == 0, err
        assert all(asked.body["api_key"] == "hidden-2" for asked in server.asked)
    written = [path.read_text() for path in (tmp_path / "out").iterdir()]
    for text in (out, err, *written):
        assert "hidden-" not in text
        assert "12345678" not in text
    options = summary_of(tmp_path / "out")["settings"]["options"]
    assert options == {"api_key": "***", "extra": {"Authorization": "***"}, "password": "***", "top_k": 20}
    code, _, err = tpru(
        *asking("http://user:hidden-1@127.0.0.1:9/v1", tmp_path / "o", tpru_hub(tmp_path / "r"))
    )
    assert "hidden-1" not in f"{code}{err}"


@pytest.mark.parametrize("name", ["[/x]", "[red]r[/red]", "\x1b]0;owned\x07", "\u202e", "\ud800"])
def test_names_of_others_are_printed_as_they_are(
    tpru: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A row's id and a server's words, in messages and tables."""
    rows = [reordering(0, id=f"row {name}", answer="A"), reordering(1, id="other")]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(as_json(row)) + "\n" for row in rows))
    reason = json.dumps({"error": {"message": f"refused {name}"}}).encode()
    with endpoint(fault=lambda number, asked: (400, reason) if number == 0 else None) as server:
        code, _, err = tpru(*asking(server.url, tmp_path / "out", source), "--concurrency", 1)
    assert code == 0, err
    assert "row row" in err
    assert "refused" in err
    assert not re.search("[\x1b\x07\u202e\ud800]", err)
    for letter in "AB":
        with endpoint(lambda asked, letter=letter: f"<answer>{letter}</answer>") as server:
            assert tpru(*asking(server.url, tmp_path / letter, source))[0] == 0
    code, out, err = tpru("compare", tmp_path / "A", tmp_path / "B")
    assert code == 0, err
    assert "2 rows changed" not in out or "row" in out
    assert not re.search("[\x1b\x07\u202e\ud800]", out)


def test_one_evaluation_at_a_time_writes_to_a_folder(tpru: Tpru, tmp_path: Path) -> None:
    with endpoint() as server, locked(tmp_path / "out"):
        code, _, _ = tpru(*asking(server.url, tmp_path / "out", tpru_hub(tmp_path / "rows")))
    assert re.fullmatch(rf"tpru: {tmp_path}/out: .* is writing to it; .*", str(code))
    assert not server.asked


def test_half_a_character_in_a_problem_fails_its_row(tpru: Tpru, tmp_path: Path) -> None:
    rows = [reordering(0, problem=reordering(0)["problem"].replace("cooking", "\ud800")), reordering(1)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(as_json(row)) + "\n" for row in rows))
    with endpoint() as server:
        code, _, err = tpru(*asking(server.url, tmp_path / "out", source))
    group = summary_of(tmp_path / "out")["benchmarks"]["tpru-test"]
    assert (code, group["n"], group["failed"]) == (0, 2, 1), err
    assert re.search(r"row rows.jsonl:0 failed: .*problem", err)


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "images": [base64.b64encode(image).decode() for image in row["images"]]}


def test_endpoints_are_told_apart() -> None:
    one, other = (Endpoint("m", url, Bounds(), Sampling()) for url in ("http://a/v1", "http://b/v1"))
    assert one.identity != other.identity


def test_damage_inside_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "responses.jsonl").write_text('{"key": "a", "texts": []}\nnonsense\n')
    with pytest.raises(ValueError, match=r"responses\.jsonl line 2: found no stored reply"):
        Store(tmp_path / "responses.jsonl")


@pytest.mark.e2e
def test_rows_are_evaluated_with_each_sampling_by_one_engine(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the demo does it: sampled and greedy answers to the same rows, and nothing asked twice."""
    from tpru_verl.demo.scenes import make_rows
    from tpru_verl.demo.scenes import write_parquet as write_scenes

    rows, responses = tmp_path / "rows.parquet", tmp_path / "responses.jsonl"
    write_scenes(make_rows(30, seed=9000), rows)
    samplings = [Sampling(max_tokens=32, temperature=1), Sampling(max_tokens=32)]

    def evaluations() -> list[Evaluation]:
        return evaluate_rows(
            checkpoint, rows, samplings, responses, style="bare", min_pixels=3136, max_pixels=3136
        )

    sampled, greedy = evaluations()
    assert [row["id"] for row in sampled.rows] == [row["id"] for row in greedy.rows]
    for found in (sampled, greedy):
        assert found.summary["n"] == len(found.rows) == 30
        assert set(found.summary["tasks"]) == {task.value for task in Task}
        assert all(
            0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1 for one in found.summary["tasks"].values()
        )
    monkeypatch.setattr("vllm.LLM", None)  # a second evaluation needs no engine
    assert [found.summary for found in evaluations()] == [sampled.summary, greedy.summary]


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_vllm_too(checkpoint: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    import psutil

    from tpru_verl.demo.scenes import make_rows
    from tpru_verl.demo.scenes import write_parquet as write_scenes

    write_scenes(make_rows(600, seed=9000), tmp_path / "rows.parquet")
    args = ["eval", checkpoint, "--data", f"tpru-test={tmp_path / 'rows.parquet'}", "--style", "bare"]
    args += ["--min-pixels", 3136, "--max-pixels", 3136, "--max-tokens", 32, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", *map(str, args)]
    replies = tmp_path / "out/responses.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (replies.exists() and replies.read_bytes().count(b"\n") > 2):
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == code, err[-2000:]
    assert f"stopped by {number.name}; the answers are in" in " ".join(err.split())
    assert started
    assert not psutil.wait_procs(started, timeout=30)[1]


@pytest.mark.e2e
def test_vllm_in_process_answers_as_the_demo_does(tpru: Tpru, checkpoint: Path, tmp_path: Path) -> None:
    """The tiny model by real vLLM; a second call finds every answer, and starts nothing."""
    from tpru_verl.demo.scenes import make_rows
    from tpru_verl.demo.scenes import write_parquet as write_scenes

    made = make_rows(30, seed=9000)
    images = {row.row_id: row.images for row in made}
    write_scenes(made, tmp_path / "rows.parquet")
    args = [checkpoint, "--rows", tmp_path / "rows.parquet", "--style", "bare", "--out", tmp_path / "out"]
    args += ["--min-pixels", 3136, "--max-pixels", 3136, "--max-tokens", 32]
    args += ["--decide", "generate,guided,score"]
    code, _, err = tpru(*args)
    assert code == 0, err
    groups = summary_of(tmp_path / "out")["benchmarks"]
    group = groups["rows.parquet"]
    assert (group["n"], group["failed"], group["unparsed"], group["format"]) == (30, 0, 0, 1)
    # One letter decides, and the likeliest one is what the model writes when it may write nothing else.
    guided, scored = (read_results(tmp_path / f"out/rows.parquet.{way}.jsonl") for way in ("guided", "score"))
    assert [row["parsed"] for row in guided] == [row["parsed"] for row in scored]
    for row in scored[:5]:
        (sample,) = row["samples"]
        expected = chances_of(checkpoint, sample["prompt"], images[row["id"]], [*row["options"]])
        assert sample["probabilities"] == pytest.approx(expected, abs=0.05)  # vLLM reckons in bfloat16
    code, _, err = tpru(*args)
    assert (code, err.count("30 answers are there already, 0 to be asked")) == (0, 3)
    assert summary_of(tmp_path / "out")["benchmarks"]["rows.parquet"]["accuracy"] == group["accuracy"]


def chances_of(model: Path, prompt: str, images: tuple[bytes, ...], letters: list[str]) -> dict[str, float]:
    """The probabilities of the letters after `<answer>` by transformers' model, as shares of their sum."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    parts = parts_of(prompt)
    content = [{"type": "image"} if p == "<image>" else {"type": "text", "text": p} for p in parts]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + "<answer>"
    pictures = [Bounds(3136, 3136).prepared(image) for image in images]
    inputs = processor(text=[text], images=pictures, return_tensors="pt")
    reader = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = reader(**inputs).logits[0, -1]
    tokens = [processor.tokenizer(text + letter)["input_ids"][-1] for letter in letters]
    return dict(zip(letters, logits[tokens].softmax(0).tolist(), strict=True))
