"""The audit: planted shortcuts are found and named, balanced rows are left alone, sources stay together."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.rows import Row, picture, write_jsonl, write_parquet

from tpru_verl.data.audit import measure as module
from tpru_verl.data.audit.fitted import folds_of
from tpru_verl.data.audit.measure import Audit, RuleResult, audit
from tpru_verl.data.audit.question import read_question, swaps
from tpru_verl.data.audit.report import CURES, REVERSE, as_json, tables, verdict
from tpru_verl.data.audit.rules import chain_of
from tpru_verl.data.source.forms import Source
from tpru_verl.demo import scenes
from tpru_verl.sample import IMAGE_TAG, NONE_OPTION, Task

LETTERS = "ABCDE"
Paint = Callable[[np.random.Generator], bytes]


def any_picture(rng: np.random.Generator, **options: Any) -> bytes:
    """Small, and all of one kind; a PNG unless `format` says otherwise."""
    return picture(int(rng.integers(2**40)), (16, 16), **options)


def choice(
    number: int,
    *,
    letters: str = LETTERS,
    nones: Sequence[float] | None = None,
    given: Paint = any_picture,
    right: Callable[[np.random.Generator, bytes], bytes] = lambda rng, given: any_picture(rng),
    wrong: Paint = any_picture,
    **changes: Any,
) -> Row:
    """A row of next-frame prediction: three given frames, four candidates, "None" at any letter.

    Nothing tells the right candidate. The answer is drawn from `letters`; `nones` are "None"'s chances to
    be right, 1 in 5 unless given.
    """
    rng = np.random.default_rng([7, number])
    answer = str(rng.choice(list(letters)))
    none_is_right = rng.random() < (0.2 if nones is None else nones[0])
    none = answer if none_is_right else str(rng.choice([letter for letter in LETTERS if letter != answer]))
    steps = [given(rng) for _ in range(3)]
    images, listed = [*steps], []
    for letter in LETTERS:
        listed.append(f"{letter}. {NONE_OPTION}" if letter == none else f"{letter}. {IMAGE_TAG}")
        if letter != none:
            images.append(right(rng, steps[-1]) if letter == answer else wrong(rng))
    problem = "What comes next? Step 1: <image> Step 2: <image> Step 3: <image>\n" + "\n".join(listed)
    row = {"problem": problem, "answer": answer, "images": images, "id": f"row-{number}"}
    return {**row, "source_id": f"source-{number}", "task": "next_frame_prediction", **changes}


def ordering(
    number: int,
    *,
    shown: float = 1 / 24,
    frame: Callable[[np.random.Generator, int], bytes] = lambda rng, moment: any_picture(rng),
    **changes: Any,
) -> Row:
    """A row of reordering: frames of moments 0 to 3 as `frame` makes them; "None" is last, right in 1 of 5.

    `shown` is the chance that the right order is that in which the frames are shown.
    """
    rng = np.random.default_rng([8, number])
    orders = [*permutations(range(4))]
    right = orders[0] if rng.random() < shown else orders[rng.integers(1, 24)]
    others = [orders[i] for i in rng.permutation(24) if orders[i] != right]
    answer = str(rng.choice(list(LETTERS)))
    texts = [right if letter == answer else others.pop() for letter in "ABCD"]
    listed = [f"{letter}. {' '.join(str(i + 1) for i in t)}" for letter, t in zip("ABCD", texts, strict=True)]
    problem = "\n".join(["What is the correct order?" + IMAGE_TAG * 4, *listed, f"E. {NONE_OPTION}"])
    images = [frame(rng, right.index(place)) for place in range(4)]
    row = {"problem": problem, "answer": answer, "images": images, "id": f"order-{number}"}
    return {**row, "source_id": f"clip-{number}", "task": "temporal_reordering", **changes}


def free_order(number: int, shown: float) -> Row:
    """A row without options, whose answer is an order of three."""
    rng = np.random.default_rng([9, number])
    order = [0, 1, 2] if rng.random() < shown else rng.permutation(3).tolist()
    problem = "Put the frames in the correct order. " + IMAGE_TAG * 3
    images = [any_picture(rng) for _ in range(3)]
    answer = " ".join(str(i + 1) for i in order)
    return {"problem": problem, "answer": answer, "images": images, "task": "temporal_reordering"}


@pytest.fixture
def audited(tmp_path: Path) -> Callable[..., Audit]:
    def run(rows: Sequence[Row], **options: Any) -> Audit:
        path = write_parquet(tmp_path / "rows.parquet", rows, row_group_size=64)
        return audit(Source.open(str(path)), **{"workers": 1, **options})

    return run


def found(audit: Audit) -> set[str]:
    return {line.rule.name for line in audit.shortcuts}


def line_of(audit: Audit, rule: str, task: str | None = None) -> RuleResult:
    (line,) = [x for x in audit.lines if x.rule.name == rule and task in (None, x.task)]
    return line


def near(rng: np.random.Generator, given: bytes) -> bytes:
    """The given frame, a little brighter here and there."""
    pixels = np.asarray(Image.open(io.BytesIO(given))).astype(int) + rng.integers(0, 12, (16, 16, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_balanced_rows_have_no_shortcut(audited: Callable[..., Audit]) -> None:
    rows = [row for i in range(200) for row in (choice(i), ordering(i))]
    result = audited(rows)
    assert verdict(result).startswith("No shortcut beats chance. In 400 rows one of 2")
    assert found(audited(rows, seed=1)) == set()
    families = {line.rule.family for line in result.lines}
    assert families == set(CURES)  # and all kinds of rules had their chance


def test_a_letter_that_is_right_too_often(audited: Callable[..., Audit]) -> None:
    result = audited([choice(i, letters="ABCCDE") for i in range(300)])
    assert {"always C", "most frequent letter"} <= found(result)
    assert {line.rule.family for line in result.shortcuts} == {"letters"}
    (prior,) = [prior for prior in result.priors if prior.name == "right letter"]
    assert max(prior.counts, key=lambda letter: prior.counts[letter]) == "C"
    assert prior.p is not None
    assert prior.p < 1e-4
    assert "shuffle the options" in verdict(result)


def test_none_that_is_right_too_often_or_never(audited: Callable[..., Audit]) -> None:
    often = audited([choice(i, nones=[0.45]) for i in range(300)])
    assert {"always None"} <= found(often) <= {"always None", "words of the row"}  # words tell where it is
    never = audited([choice(i, nones=[0.0]) for i in range(800)])
    # Any candidate is right in one row of four: that is no merit of how one picks among candidates.
    assert found(never) == {"never None"}
    assert line_of(never, "largest file").level == pytest.approx(0.25)
    (share,) = [prior for prior in never.priors if prior.name == "None"]
    assert share.counts == {"right": 0, "wrong": 800}
    assert share.p is not None
    assert share.p < 1e-9


def test_the_candidate_most_similar_to_given_frames(audited: Callable[..., Audit]) -> None:
    result = audited([choice(i, right=near) for i in range(100)])
    assert {"nearest to given frames (pixels)", "nearest to last given frame (hash)"} <= found(result)
    assert not {rule for rule in found(result) if rule.startswith("farthest")}
    assert {line.rule.family for line in result.shortcuts} == {"candidates"}
    nones = line_of(result, "always None").right
    assert line_of(result, "nearest to last given frame (pixels)").right == 100 - nones
    assert "nearest to last given frame" in verdict(result)


def test_a_candidate_that_repeats_a_given_frame(audited: Callable[..., Audit]) -> None:
    result = audited([choice(i, right=lambda rng, given: given) for i in range(100)])
    line = line_of(result, "repeats a given frame")
    assert line.accuracy == 1  # it applies where there is one, so never where "None" is right
    assert line.n < 100
    assert line.beats_chance


def test_the_odd_candidate_out(audited: Callable[..., Audit]) -> None:
    def alike(rng: np.random.Generator) -> bytes:
        return near(rng, picture(1, (16, 16)))

    result = audited([choice(i, wrong=alike) for i in range(100)])
    assert "odd candidate out (pixels)" in found(result)
    assert "most usual candidate (pixels)" not in found(result)


def test_a_right_candidate_with_a_larger_file(audited: Callable[..., Audit]) -> None:
    def plain(rng: np.random.Generator) -> bytes:
        return any_picture(rng, format="BMP") + bytes(rng.integers(1, 5))

    def longer(rng: np.random.Generator, given: bytes) -> bytes:
        return plain(rng) + bytes(9)

    def shorter(rng: np.random.Generator, given: bytes) -> bytes:
        return any_picture(rng, format="BMP")

    result = audited([choice(i, right=longer, wrong=plain) for i in range(100)])
    assert "largest file" in found(result)
    assert "smallest file" not in found(result)
    assert {line.rule.family for line in result.shortcuts} == {"files"}
    assert "smallest file" in found(audited([choice(i, right=shorter, wrong=plain) for i in range(100)]))


def test_candidates_of_another_compression(audited: Callable[..., Audit]) -> None:
    as_given = partial(any_picture, format="JPEG", quality=90)
    again = partial(any_picture, format="JPEG", quality=89)
    result = audited(
        [choice(i, given=as_given, right=lambda rng, given: as_given(rng), wrong=again) for i in range(100)]
    )
    assert {"nearest to given frames (encoding)", "odd candidate out (encoding)"} <= found(result)
    line = line_of(result, "nearest to given frames (encoding)")
    assert line.right == line.n  # where "None" is right all candidates are alike, and it does not apply


def test_candidates_of_another_size(audited: Callable[..., Audit]) -> None:
    def wider(rng: np.random.Generator, given: bytes) -> bytes:
        return picture(int(rng.integers(2**40)), (17, 16))

    result = audited([choice(i, right=wider) for i in range(60)])
    assert {"odd candidate out (size)", "farthest from given frames (size)"} <= found(result)


def test_a_text_that_gives_the_answer_away(audited: Callable[..., Audit]) -> None:
    def hinted(number: int) -> Row:
        row = choice(number)
        hint = {"A": "early", "B": "soon", "C": "half way", "D": "late", "E": "at last"}[row["answer"]]
        return {**row, "problem": f"It is {hint}. {row['problem']}"}

    result = audited([hinted(i) for i in range(200)])
    assert found(result) == {"words of the row"}
    assert line_of(result, "words of the row").accuracy > 0.9


def test_an_option_whose_words_give_it_away(audited: Callable[..., Audit]) -> None:
    rng = np.random.default_rng(0)

    def worded(number: int) -> Row:
        row = choice(number)
        things = rng.permutation(["cup", "pan", "lid", "fork", "spoon"])
        right = LETTERS.index(row["answer"])
        texts = [f"the {things[i]} is {'carefully' if i == right else 'then'} put away" for i in range(5)]
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True))
        problem = f"What comes next? Step 1: <image>\n{listed}"
        return {**row, "problem": problem, "images": row["images"][:1]}

    result = audited([worded(i) for i in range(100)])
    assert {"words of the options", "longest text"} <= found(result)
    assert line_of(result, "words of the options").accuracy == 1


def same_answer_in_a_source(number: int, *, named: bool) -> Row:
    """Ten rows a source, all with one right letter, and words that tell the source and nothing else."""
    source, turn = divmod(number, 10)
    row = choice(number, letters=LETTERS[source * 2 % 5])
    words = f"This is kitchen{source} with stove{source}."
    changes = {"source_id": f"kitchen-{source}" if named else ""}
    return {**row, "problem": f"{words} {row['problem']}", "id": f"{source}-{turn}", **changes}


def test_words_that_name_the_source_are_no_shortcut(audited: Callable[..., Audit]) -> None:
    named = audited([same_answer_in_a_source(i, named=True) for i in range(400)])
    assert named.groups == 40
    assert found(named) == set(), verdict(named)
    # The same rows as if each came from a source of its own: the words tell all.
    unnamed = audited([same_answer_in_a_source(i, named=False) for i in range(400)])
    assert "words of the row" in found(unnamed)


def test_rows_of_one_source_do_not_count_as_many(audited: Callable[..., Audit]) -> None:
    """Twelve sources, six with A right in all rows: 120 rows say no more than twelve would."""
    letters = "AAAAAABBCCDE"
    rows = [choice(i, letters=letters[i % 12], source_id=f"source-{i % 12}") for i in range(240)]
    result = audited(rows)
    line = line_of(result, "always A")
    assert line.accuracy == 0.5
    assert line.design_effect == pytest.approx(20, rel=0.1)
    assert not line.beats_chance
    alone = audited([{**row, "source_id": row["id"]} for row in rows])
    assert line_of(alone, "always A").beats_chance


def test_folds_keep_groups_whole_and_break_turns() -> None:
    groups = [f"source-{i // 3:03}" for i in range(150)]
    folds = folds_of(groups, seed=0)
    assert folds is not None
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 150, 3))
    assert np.bincount(folds).tolist() == [30] * 5
    turns = [np.unique(np.arange(50)[folds[::3] == fold] % 5).size for fold in range(5)]
    assert min(turns) > 2
    assert folds_of(["one"] * 9, seed=0) is None


def test_right_orders_that_are_the_order_as_shown(audited: Callable[..., Audit]) -> None:
    result = audited([ordering(i, shown=0.4) for i in range(200)])
    assert "order as shown" in found(result)
    assert "words of the options" in found(result)
    assert {line.rule.family for line in result.shortcuts} <= {"orders", "text"}
    priors = {prior.name: prior for prior in result.priors}
    assert next(iter(priors["right order of 4"].counts)) == "1 2 3 4"
    for name in ("order of 4 as shown", "frame at place 1 of 4"):
        p = priors[name].p
        assert p is not None
        assert p < 1e-3


def test_frames_that_files_or_light_put_in_order(audited: Callable[..., Audit]) -> None:
    def by_bytes(rng: np.random.Generator, moment: int) -> bytes:
        return any_picture(rng, format="BMP") + b"\0" * moment

    def by_light(rng: np.random.Generator, moment: int) -> bytes:
        pixels = np.full((16, 16), 40 * (4 - moment)) + rng.integers(0, 9, (16, 16))
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "BMP")
        return buffer.getvalue()

    assert found(audited([ordering(i, frame=by_bytes) for i in range(60)])) == {"smallest file first"}
    light = audited([ordering(i, frame=by_light) for i in range(60)])
    assert "brightest frame first" in found(light)
    assert "darkest frame first" not in found(light)


def test_frames_that_change_little_by_little(audited: Callable[..., Audit]) -> None:
    def filling(rng: np.random.Generator, moment: int) -> bytes:
        """Columns turn, one half from dark to bright and as much the other way: the light stays the same."""
        pixels = np.zeros((16, 16), np.uint8)
        pixels[:8, : 4 * moment + 1] = pixels[8:, 4 * moment + 1 :] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "BMP")
        return buffer.getvalue()

    result = audited([ordering(i, frame=filling) for i in range(100)])
    assert "chain of frames, either way" in found(result)
    assert line_of(result, "chain of frames, either way").accuracy > 0.6
    assert line_of(result, "chain of frames, backwards").accuracy < 0.6


def test_orders_without_options(audited: Callable[..., Audit]) -> None:
    result = audited([free_order(i, shown=0.5) for i in range(120)])
    assert found(result) == {"order as shown", "most frequent order"}
    assert line_of(result, "order as shown").chance == pytest.approx(1 / 6)
    assert found(audited([free_order(i, shown=0) for i in range(120)])) == set()


def test_demo_rows_are_audited_honestly(tmp_path: Path) -> None:
    """Letters, text and listed orders are balanced; that progress is all in few pixels, the audit says."""
    scenes.write_parquet(scenes.make_rows(300, seed=0), tmp_path / "demo.parquet")
    result = audit(Source.open(str(tmp_path / "demo.parquet")), workers=1)
    assert not {line.rule.family for line in result.shortcuts} & {"letters", "none", "text", "orders"}
    assert {"chain of frames, either way", "odd candidate out (pixels)"} <= found(result)
    assert result.reverse_listed < 0.3
    assert REVERSE in verdict(result)
    followed = verdict(replace(result, reverse_listed=1.0))
    assert REVERSE not in followed  # no advice to rows that follow it
    assert "choose frames from places that look alike" in followed
    assert {line.task for line in result.lines} == {"", *(task.value for task in Task)}


def test_unusable_rows_are_counted_and_named(audited: Callable[..., Audit]) -> None:
    rows = [choice(i) for i in range(10)]
    rows[3]["answer"] = "Z"
    whole = any_picture(np.random.default_rng(0))
    at = whole.index(b"IDAT") + 8
    rows[5]["images"][4] = whole[:at] + b"????" + whole[at + 4 :]  # header and end are sound
    rows[7] = {**rows[7], "problem": "Which one? <image>", "answer": "B", "images": rows[7]["images"][:1]}
    result = audited(rows)
    assert (result.rows, sum(result.tasks.values()), result.without_options) == (10, 7, 1)
    assert [(finding.row, finding.field) for finding in result.unusable] == [(3, "answer"), (5, "images")]
    assert line_of(result, "always A").n == 7
    assert "(2 unusable and 1 without options of 10 rows left out)" in verdict(result)


def test_nothing_to_measure_is_an_error(audited: Callable[..., Audit]) -> None:
    with pytest.raises(ValueError, match=r"rows.parquet: found no row of 2 .*row 0: answer: found 'Z'"):
        audited([choice(i, answer="Z") for i in range(2)])


def test_few_rows_are_said_to_be_few(audited: Callable[..., Audit]) -> None:
    assert "3 rows are too few to see any." in verdict(audited([choice(i) for i in range(3)]))


def test_one_source_leaves_fitted_rules_out(audited: Callable[..., Audit]) -> None:
    result = audited([choice(i, source_id="one") for i in range(20)])
    assert "always A" in {line.rule.name for line in result.lines}
    assert not {line.rule.name for line in result.lines} & {"most frequent letter", "words of the row"}


def test_workers_do_not_change_the_result(audited: Callable[..., Audit]) -> None:
    rows = [row for i in range(80) for row in (choice(i), ordering(i))]
    assert json.dumps(as_json(audited(rows))) == json.dumps(as_json(audited(rows, workers=2)))


def test_long_sources_give_a_share_of_their_texts(
    audited: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXT_ROWS", 50)
    rows = [choice(i, source_id=f"source-{i // 2}") for i in range(200)]
    result = audited(rows)
    assert 20 < line_of(result, "words of the row").n < 90
    assert line_of(result, "words of the row").n % 2 == 0  # whole sources
    assert line_of(result, "most frequent letter").n == 200


def test_tables_and_json_hold_what_was_measured(audited: Callable[..., Audit]) -> None:
    result = audited([row for i in range(40) for row in (choice(i, right=near), ordering(i))])
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables(result):
        console.print(table)
    text = console.export_text()
    assert {line.rule.name for line in result.lines if line.rule.name not in text} == set()
    assert "80 of 80 rows measured, of 80 sources" in text
    orders = next(prior for prior in result.priors if prior.name == "right order of 4")
    order, times = next(iter(orders.counts.items()))
    assert f"{order} ({times} row" in text  # a number of an order is not taken for its count
    read = json.loads(json.dumps(as_json(result), allow_nan=False))
    assert read["verdict"] == verdict(result)
    assert len(read["rules"]) == len(result.lines)
    for line in read["rules"]:
        assert line["low"] <= line["accuracy"] <= line["high"]
        assert 0 <= line["p"] <= line["holm"] <= 1
    assert {line["rule"] for line in read["shortcuts"]} == found(result)
    assert [line for line in read["rules"] if line["beats_chance"]]


def test_tables_survive_markup_in_names(tmp_path: Path) -> None:
    row = {"problem": "Reorder:" + IMAGE_TAG * 2, "answer": "2 1", "images": ["a.png"] * 2}
    write_jsonl(tmp_path / "[red].jsonl", [row])
    (tmp_path / "a.png").write_bytes(picture(0))
    result = audit(Source.open(str(tmp_path / "[red].jsonl")), workers=1)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables(result)[0])
    assert "[red].jsonl" in console.export_text()


def test_a_missing_package_is_named(audited: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r'^an audit needs scikit-learn: .*pip install .*\[build\]"'):
        audited([choice(0)])


class TestReadQuestion:
    def test_candidates_are_the_images_behind_letters(self) -> None:
        problem = f"A. nice day: <image> and <image> (A) <image> (B) {NONE_OPTION} (C) see <image>"
        question = read_question(problem, "C", 4)
        assert question is not None
        assert question.given == (0, 1)
        assert question.candidates == {0: 2, 2: 3}
        assert (question.right, question.none, question.chance) == (2, 1, 1 / 3)

    def test_orders(self) -> None:
        problem = f"Order? {IMAGE_TAG * 3}\nA. 3, 1, 2\nB. 1->2->3\nC. {NONE_OPTION}"
        question = read_question(problem, "A", 3)
        assert question is not None
        assert question.orders == {0: (2, 0, 1), 1: (0, 1, 2)}
        assert question.order == (2, 0, 1)
        assert question.frames == (0, 1, 2)

    def test_an_order_of_lettered_images(self) -> None:
        question = read_question("Order? A. <image> B. <image> C. <image>", "CAB", 3)
        assert question is not None
        assert (question.right, question.order, question.frames) == (-1, (2, 0, 1), (0, 1, 2))
        assert question.chance == pytest.approx(1 / 6)

    def test_a_letter_without_options(self) -> None:
        assert read_question("Which? <image>", "A", 1) is None


def test_chain_goes_on_to_the_nearest_frame() -> None:
    places = np.array([5.0, 0.0, 9.0, 6.0])
    assert chain_of(np.abs(places[:, None] - places)) == (1, 0, 3, 2)


def test_swaps_count_pairs_the_other_way_round() -> None:
    assert [swaps((0, 1, 2), order) for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0))] == [0, 1, 3]
