"""Quotes of csv and tsv tables: an open one is refused, a text of several lines is read."""

import csv
from pathlib import Path

import pytest

from tpru_verl.data.source.parts import Part, plain_rows

HEAD = ["id", "image", "answer", "text"]


def table(path: Path, lines: list[str], head: list[str] = HEAD) -> Part:
    mark = "\t" if path.suffix == ".tsv" else ","
    path.write_text("\n".join([mark.join(head), *(line.replace("|", mark) for line in lines)]) + "\n")
    return Part(path.name, path)


def line(number: int, text: str) -> str:
    return f"r{number}|pics/a{number}.png|{number} 2 1|{text}"


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    "lines",
    [
        [line(10, "one"), line(2, '"open'), line(3, "three")],
        [line(1, "one"), line(2, '"open'), line(3, 'a "quoted" word')],
        [line(1, "one"), line(2, '"open'), line(3, '"three"')],
        [line(1, "one"), line(2, '"open'), line(3, 'a screen of 5"'), line(4, "four")],
        [line(1, "one"), line(2, '"open'), line(3, "three"), line(4, 'a screen of 5"')],
        [line(1, "one"), 'r2|"open.png|3 2 1|two', 'r3|a 5".png|1 2 3|three', line(4, "four")],
        [line(1, "one"), '"r2|a.png|3 2 1|two', 'r3"|a.png|1 2 3|three', line(4, "four")],
        [line(1, "one"), line(2, '"two" and more')],
    ],
)
def test_an_open_quote_takes_no_rows(tmp_path: Path, suffix: str, lines: list[str]) -> None:
    part = table(tmp_path / f"rows.{suffix}", lines)
    with pytest.raises(ValueError, match=rf"rows\.{suffix} line 3: .*a quote inside it is written twice"):
        list(plain_rows(part))


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize(
    "text",
    [
        "Look here, then there.\nNow, what comes next, and why, I ask?",
        "one, two, three, four\none, two, three, four\none, two, three, four",
        "What is the order?\n1,2,3,4\n4,3,2,1",
        "1,2,3,4\n4,3,2,1",
        "What is the order?\nA. 1,2,3,4\nB. 4,3,2,1\nC. 2,1,3,4",
        'Say "this, or that, or nothing, or all"\nor "that",\n\nthen',
        "5cm,6cm,7cm,8cm\n1cm,2cm,3cm,4cm",
    ],
)
def test_a_text_of_several_lines_is_one_cell(tmp_path: Path, text: str, at: int) -> None:
    names = [*HEAD[:3][:at], "text", *HEAD[:3][at:]]
    rows = [
        dict(zip(["text", *HEAD[:3]], [text, f"{number}", f"pics/{number}.png", "B"], strict=True))
        for number in (1, 2)
    ]
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        with (path := tmp_path / f"rows{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
        assert list(plain_rows(Part(path.name, path))) == rows


def test_a_text_of_several_lines_beside_an_id_alone(tmp_path: Path) -> None:
    lines = ['r1|"Look here, then\nthere, now"', 'r2|"First, what?\nSecond, why?\nA. 1\nB. 2, 3"']
    part = table(tmp_path / "rows.csv", lines, ["id", "text"])
    assert [row["id"] for row in plain_rows(part)] == ["r1", "r2"]


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        path = tmp_path / "rows.csv"
        path.write_bytes("id,text\n1,Stra\u00dfe und mehr\n".encode(encoding))
        with pytest.raises(ValueError, match=r"rows\.csv: found bytes .*; save the file as UTF-8"):
            list(plain_rows(Part(path.name, path)))
