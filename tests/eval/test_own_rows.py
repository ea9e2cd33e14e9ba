"""`tpru eval --rows`: the user's own rows under their own name, and no published numbers beside them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.benchmark_rows import tpru_hub
from support.endpoint import Asked, endpoint
from support.rows import reordering, write_jsonl, write_parquet

from tpru_verl.eval.benchmarks.own import own
from tpru_verl.eval.published import OVERALL
from tpru_verl.eval.results import read_results

Tpru = Callable[..., tuple[object, str, str]]


def test_a_split_of_a_folder(tpru_eval: Tpru, tmp_path: Path) -> None:
    tpru_hub(tmp_path / "mine")  # TPRU-Test's own layout, and a file's name that says "test"
    write_parquet(tmp_path / "mine/train.parquet", [reordering(9)])
    out = tmp_path / "out"
    with endpoint() as server:
        code, said, err = tpru_eval(
            "tiny", "--base-url", server.url, "--out", out, "--rows", f"{tmp_path}/mine@test"
        )
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())["benchmarks"]
    assert {name: group["n"] for name, group in summary.items()} == {"mine@test": 5}
    assert (out / "mine@test.jsonl").is_file()
    assert "mine@test" in said
    assert "published" not in err
    page = (out / "page.html").read_text()
    assert not [model for model in OVERALL["tpru-test"] if model in page]


def test_own_rows_beside_a_benchmark_of_the_same_name(tpru_eval: Tpru, tmp_path: Path) -> None:
    source = tpru_hub(tmp_path / "tpru_test")
    args = ["--bench", "tpru-test", "--data", f"tpru-test={source}", "--rows", source.parent]
    with endpoint() as server:
        code, _, err = tpru_eval("tiny", "--base-url", server.url, "--out", tmp_path / "out", *args)
    assert code == 0, err
    summary = json.loads((tmp_path / "out/summary.json").read_text())["benchmarks"]
    assert list(summary) == ["tpru-test", "tpru_test-2"]
    assert summary["tpru-test"]["accuracy"] == summary["tpru_test-2"]["accuracy"]


def test_sources_of_one_name_have_names_of_their_own() -> None:
    names = [benchmark.name for benchmark, _ in own(["a/x y.jsonl", "b/x y.jsonl", "a/x y.jsonl", "/"])]
    assert names == ["x-y.jsonl", "x-y.jsonl-2", "rows"]


@pytest.mark.parametrize(
    "source", ["a/responses", "a/Responses/", "a/summary", "a/page", "a/x.guided", "a/x.score"]
)
def test_names_of_other_results_are_reserved(source: str) -> None:
    ((benchmark, _),) = own([source])
    assert benchmark.name == f"{Path(source).name}-2"


def test_a_source_called_responses_keeps_the_stored_replies(tpru_eval: Tpru, tmp_path: Path) -> None:
    write_parquet(tmp_path / "responses/rows.parquet", [reordering(1)])
    args = ["--rows", tmp_path / "responses", "--out", tmp_path / "out"]
    with endpoint() as server:
        for _ in range(2):
            code, _, err = tpru_eval("tiny", "--base-url", server.url, *args)
            assert code == 0, err
    assert len(server.asked) == 1
    assert (tmp_path / "out/responses-2.jsonl").is_file()


ANSWERS = [
    "B",
    "b",
    "(B)",
    "B.",
    "B. 3 1 4 2",
    "3 1 4 2",
    "<answer>B</answer>",
    "None of the choices provided",
]


def test_circular_reads_the_answer_of_a_row_in_each_form(tpru_eval: Tpru, tmp_path: Path) -> None:
    """The model knows the option "3 1 4 2", wherever it stands: all rows but the last are right."""
    rows = [reordering(i, answer=answer) for i, answer in enumerate(ANSWERS)]
    source = write_parquet(tmp_path / "rows.parquet", rows)

    def knows(asked: Asked) -> str:
        (letter,) = re.findall(r"^([A-E])\. 3 1 4 2$", asked.text, re.MULTILINE)
        return f"<answer>{letter}</answer>"

    with endpoint(knows) as server:
        args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out", "--circular"]
        code, _, err = tpru_eval(*args)
    assert code == 0, err
    assert len(server.asked) == 5 * len(ANSWERS)
    lines = read_results(tmp_path / "out/rows.parquet.jsonl")
    assert [line["answer"] for line in lines] == ["B"] * 7 + ["E"]
    assert [line["score"] for line in lines] == [1] * 7 + [0]
    assert not [line["failed"] for line in lines if line["failed"]]


def test_circular_asks_once_for_an_order_of_labelled_pictures(tpru_eval: Tpru, tmp_path: Path) -> None:
    labelled = "".join(f"\nImage {letter}: <image>" for letter in "ABCD")
    row = reordering(1, problem=f"What is the correct order?{labelled}", answer="BDAC")
    source = write_parquet(tmp_path / "rows.parquet", [row])
    with endpoint(lambda asked: "<answer>BDAC</answer>") as server:
        args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out", "--circular"]
        code, _, err = tpru_eval(*args)
    assert (code, len(server.asked)) == (0, 1), err
    (line,) = read_results(tmp_path / "out/rows.parquet.jsonl")
    assert (line["score"], line["failed"]) == (1, None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task": "sorting"}, "'sorting'"),
        ({"answer": "F"}, "answer: found 'F', expected one of A, B, C, D, E"),
    ],
)
def test_a_row_that_cannot_be_asked_counts_as_failed(
    tpru_eval: Tpru, tmp_path: Path, row: dict[str, object], said: str
) -> None:
    good, bad = ({**reordering(i), "images": []} for i in (1, 2))
    for line in (good, bad):
        line["problem"] = line["problem"].replace("<image>", "") + "<image>"
        line["images"] = [str(tmp_path / "p.png")]
    (tmp_path / "p.png").write_bytes(reordering(1)["images"][0])
    source = write_jsonl(tmp_path / "rows.jsonl", [good, {**bad, **row}])
    with endpoint() as server:
        code, _, err = tpru_eval(
            "tiny", "--base-url", server.url, "--out", tmp_path / "out", "--rows", source
        )
    assert code == 0, err
    assert "1 row of the data is broken, the first: row " in err
    assert said in err.partition("count as wrong")[2]
    (group,) = json.loads((tmp_path / "out/summary.json").read_text())["benchmarks"].values()
    assert (group["n"], group["failed"]) == (2, 1)


def test_broken_rows_count_in_the_tables_of_tasks_and_scenes(tpru_eval: Tpru, tmp_path: Path) -> None:
    """One is broken in its pictures, which says nothing about its task, one in the name of its task."""
    named = {"task": "temporal_reordering", "scene": "kitchen"}
    rows = [{**reordering(i), **named} for i in range(4)]
    rows[1]["images"] = [b"no picture"] * 4
    rows[2] |= {"task": "sorting", "scene": ""}
    source = write_parquet(tmp_path / "rows.parquet", rows)
    with endpoint(lambda asked: "<answer>B</answer>") as server:
        for out in ("a", "b"):
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / out]
            code, said, err = tpru_eval(*args)
            assert code == 0, err
    (group,) = json.loads((tmp_path / "a/summary.json").read_text())["benchmarks"].values()
    counts = [
        {name: (one["n"], one["failed"]) for name, one in group[by].items()} for by in ("tasks", "scenes")
    ]
    assert counts == [
        {"temporal_reordering": (3, 1), "no task named": (1, 1)},
        {"kitchen": (3, 1), "no scene named": (1, 1)},
    ]
    assert group["tasks"]["temporal_reordering"]["accuracy"] == pytest.approx(2 / 3)
    assert "no task named" in said
    code, said, err = tpru_eval("compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "gain.json")
    assert code == 0, err
    (found,) = json.loads((tmp_path / "gain.json").read_text()).values()
    assert sum(one["difference"]["n"] for one in found["tasks"].values()) == 4


def test_rows_that_do_not_exist_are_one_line(tpru_eval: Tpru, tmp_path: Path) -> None:
    with endpoint() as server:
        code, _, _ = tpru_eval("tiny", "--base-url", server.url, "--out", tmp_path, "--rows", tmp_path / "no")
    assert "no such file or folder" in str(code)
