"""The demo's page: whole, honest about what it shows, and safe whatever a model answered."""

import html
import json
import random
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tpru_verl.demo.evaluate import greedy_beside, score
from tpru_verl.demo.page import OUTCOMES, draw_curve, write_page
from tpru_verl.demo.scenes import LETTERS, SCENES, make_rows, write_parquet
from tpru_verl.eval.benchmarks import BENCHMARKS, load
from tpru_verl.eval.results import result_of_row
from tpru_verl.eval.store import Reply

pytest.importorskip("matplotlib")

N = 300
COMMANDS = ["tpru demo --seed 2 --out outputs/demo-2", "tpru train tpru_7b --dry-run data.train_files=a&b"]


def write_run(out: Path, *, attack: str = "", correlation: float = 0.996) -> None:
    """A demo's output folder: `N` rows, about half right before and 70 % after, 120 steps of metrics."""
    rng = random.Random(1)
    rows = make_rows(N, seed=9, scenes=list(SCENES))
    write_parquet(rows, out / "rows/test.parquet")
    right = [rng.random() < 0.49 for _ in rows]
    # Nine in ten stay right, half of the others become so.
    later = [rng.random() < (0.9 if was else 0.5) for was in right]
    items = load(BENCHMARKS["tpru-test"], str(out / "rows/test.parquet")).items
    for name, results in (("before", right), ("after", later)):
        lines: list[str] = []
        for item, is_right in zip(items, results, strict=True):
            said = item.answer if is_right else LETTERS[(LETTERS.index(item.answer) + 1) % 5]
            form = attack or f"<answer>{said}</answer>"
            reply = Reply([f"<think>Step 3 is {said}</think>{form}"], ["stop"])
            result = result_of_row("tpru-test", item, [(item, item.problem, reply)], None)
            lines.append(json.dumps(result) + "\n")
        for file in (out / f"{name}.jsonl", greedy_beside(out / f"{name}.jsonl")):
            file.write_text("".join(lines))
    with (out / "metrics.jsonl").open("w") as file:
        for step in range(121):
            learnt = 0.46 + 0.25 * step / 120
            data: dict[str, float | None] = {}
            if step:
                data["critic/score/mean"] = learnt + rng.uniform(-0.08, 0.08)
                data["training/rollout_actor_probs_pearson_corr"] = correlation + rng.uniform(-0.002, 0.002)
            if step % 40 == 0:
                for offset, task in enumerate(sorted({row.task.value for row in rows})):
                    data[f"val-core/tpru/{task}/acc/mean@1"] = learnt + 0.06 * (offset - 1)
            if step == 7:  # the logger writes NaN so
                data["training/rollout_actor_probs_pearson_corr"] = None
            file.write(json.dumps({"step": step, "data": data}) + "\n")
    scores = {name: score(out / f"{name}.jsonl") for name in ("before", "after")}
    seconds = {
        "rows": 1.2,
        "evaluate_before": 48.0,
        "start": 61.7,
        "grpo": 431.0,
        "merge": 9.0,
        "evaluate_after": 47.0,
    }
    summary = {
        **scores,
        "seconds": seconds | {"total": sum(seconds.values())},
        "steps": 120,
        "seed": 1,
        "peak_memory_gib": 9.44,
        "rollout_actor_correlation": {"min": correlation - 0.002, "mean": correlation},
        "versions": {"python": "3.11.2", "verl": "0.9.1", "torch": "2.13.0"},
    }
    (out / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its page, only to be read."""
    out = tmp_path_factory.mktemp("run")
    write_run(out)
    write_page(out, next_commands=COMMANDS)
    return out


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(run, tmp_path / "out")


class Elements(HTMLParser):
    """Tags, what they refer to, and whether each that is opened is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.stack: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def text_of(page: Path) -> str:
    """The page's words, whitespace collapsed."""
    body = page.read_text().partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_curve_is_a_picture(out: Path):
    draw_curve(out / "metrics.jsonl", out / "curve.png")
    with Image.open(out / "curve.png") as image:
        assert image.width > 900
        assert image.format == "PNG"
    assert not list(out.glob(".*"))


def test_page_holds_all_that_it_shows(run: Path):
    elements = Elements((run / "page.html").read_text())
    assert not elements.stack
    assert elements.links
    assert all(link.startswith("data:image/") for link in elements.links)
    assert elements.tags["article"] == 12
    assert not list(run.glob(".*"))


def test_page_says_what_the_summary_says(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    text = text_of(run / "page.html")
    for groups in (summary["before"], summary["after"]):
        for group in groups.values():
            low, high, share = (f"{100 * group[key]:.1f} %" for key in ("low", "high", "accuracy"))
            assert f"{share} {low} to {high}" in text
    for words in (
        "seed 1",
        "verl 0.9.1",
        "GRPO, 120 steps 7 min 11 s",
        "9.4 GiB",
        "do not overlap",
        *COMMANDS,
    ):
        assert words in text


def test_rows_are_shown_in_proportion(out: Path):
    text = text_of(write_page(out, next_commands=[], rows=30))
    shown = {
        outcome: (int(n), int(some))
        for outcome, n, some in re.findall(rf"([A-Z]\w+ \w+): (\d+) of {N} rows, (\d+) shown", text)
    }
    assert [outcome.lower() for outcome in shown] == list(OUTCOMES.values())
    assert sum(n for n, _ in shown.values()) == N
    assert sum(some for _, some in shown.values()) == 30
    for n, some in shown.values():
        assert abs(30 * n / N - some) <= 1
    assert text.count("row temporal_reordering") in range(8, 13)


def test_a_rare_outcome_is_shown_once(out: Path):
    answers = (out / "before.jsonl").read_text().splitlines()
    row = json.loads(answers[0])
    all_wrong = [json.dumps(json.loads(line) | {"score": 0.0}) for line in answers]
    for name, first in (("before", 1.0), ("after", 0.0)):
        lines = [json.dumps(row | {"score": first}), *all_wrong[1:]]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    text = text_of(write_page(out, next_commands=[], rows=4))
    assert f"Newly wrong: 1 of {N} rows, 1 shown" in text
    assert f"Still wrong: {N - 1} of {N} rows, 3 shown" in text


def test_images_stand_at_their_tags(run: Path):
    page = (run / "page.html").read_text()
    items = load(BENCHMARKS["tpru-test"], str(run / "rows/test.parquet")).items
    problems = {item.id: item.problem for item in items}
    for article in re.findall(r"<article.*?</article>", page, re.DOTALL):
        match = re.search(r"row <code>([^<]*)</code>", article)
        assert match
        inside = article[match.end() : article.index('<p class="verdict"')]
        shown = re.sub(r"<img [^>]*>", "IMG ", inside)
        shown = re.sub(r"<figcaption>(.*?)</figcaption>", r"\1:", shown)
        shown = re.sub(r"<b>([A-E])\b", r"\1.", shown).replace("right answer", "")
        words = re.sub(r"<[^>]*>", " ", shown).split()
        assert words == problems[match[1]].replace("<image>", " IMG ").replace(".IMG", ". IMG").split()


def test_what_a_model_answers_cannot_become_markup(tmp_path: Path):
    write_run(tmp_path, attack="<script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>{{ 7 * 7 }}")
    page = write_page(tmp_path, next_commands=["<script>alert(2)</script>"])
    elements = Elements(page.read_text())
    assert "script" not in elements.tags
    assert all(link.startswith("data:image/") for link in elements.links)
    text = text_of(page)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert "no answer, wrong" in text


def test_disagreement_of_rollout_and_actor_is_said_in_words(tmp_path: Path):
    write_run(tmp_path, correlation=0.7)
    assert "Rollout and actor disagree" in text_of(write_page(tmp_path, next_commands=[]))


def test_no_improvement_is_said_in_words(out: Path):
    summary = json.loads((out / "summary.json").read_text())
    for after, words in ((summary["before"], "shows no improvement"), (None, "made it worse")):
        changed = summary | (
            {"after": after} if after else {"before": summary["after"], "after": summary["before"]}
        )
        (out / "summary.json").write_text(json.dumps(changed))
        assert words in text_of(write_page(out, next_commands=[]))


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "before.jsonl", "after.jsonl", "rows/test.parquet"]
)
@pytest.mark.parametrize("content", [None, b"", b"{}\n", b"no json \xff"])
def test_a_missing_or_broken_file_is_one_line_that_names_it(out: Path, name: str, content: bytes | None):
    (out / "page.html").write_text("an earlier page")
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)) as raised:
        write_page(out, next_commands=[])
    assert "\n" not in str(raised.value)
    assert (out / "page.html").read_text() == "an earlier page"


def test_answers_about_other_rows_are_refused(out: Path):
    lines = (out / "after.jsonl").read_text().splitlines(keepends=True)
    (out / "after.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=r"after\.jsonl: id: found 299 rows that are not the 300"):
        write_page(out, next_commands=[])


def test_rows_that_were_not_asked_are_refused(out: Path):
    write_parquet(make_rows(N, seed=8), out / "rows/test.parquet")
    with pytest.raises(
        ValueError, match=r"test\.parquet, row .*: found another row or none, expected the row"
    ):
        write_page(out, next_commands=[])


def test_too_few_rows_are_refused(out: Path):
    with pytest.raises(ValueError, match="rows: found 3, expected 4 or more"):
        write_page(out, next_commands=[], rows=3)
