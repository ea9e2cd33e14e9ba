"""Pure parts of the builder: filters, wrong frames, words, letters."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from support.frames import Given, clip, encoded, moment, screen, screens

from tpru_verl.builder import candidates, tasks
from tpru_verl.builder.asking import ask
from tpru_verl.builder.clips import Counts, Frame
from tpru_verl.builder.deal import Deal
from tpru_verl.builder.filters import Filters, clips_of
from tpru_verl.builder.tasks import LETTERS, Draft, Near, TaskOptions, drafts_of, plain_text, seeded
from tpru_verl.builder.wrong_orders import WrongOrders
from tpru_verl.data.audit.question import swaps
from tpru_verl.data.likeness import watched_of
from tpru_verl.sample import IMAGE_TAG, NONE_OPTION, Task, parse_options, problems_of, recognise_task

FILTERS = Filters()


def filtered(pictures: list[Image.Image], filters: Filters = FILTERS) -> tuple[list[int], Counts]:
    """Numbers of the frames that are kept, and what was counted."""
    frames = [Frame(encoded(picture, quality=92), i) for i, picture in enumerate(pictures)]
    counts = Counts()
    made = [*clips_of(Given(frames), filters, counts, shortest=1, longest=99)]
    return [number for clip, _ in made for number in clip.index if number is not None], counts


def steps(count: int) -> list[Image.Image]:
    return [moment(0, i / (count - 1)) for i in range(count)]


def test_blank_blurred_frozen_and_unchanged_frames_are_counted_by_reason() -> None:
    pictures = steps(6)
    blank = Image.new("RGB", pictures[0].size, (90, 90, 90))
    blurred = pictures[2].filter(ImageFilter.GaussianBlur(12))
    nearly = pictures[3].copy()
    nearly.paste((255, 255, 255), (100, 80, 105, 85))
    shown = [pictures[0], blank, pictures[1], blurred, pictures[3], nearly, pictures[4], pictures[4]]
    kept, counts = filtered(shown)
    assert kept == [0, 2, 4, 6]
    assert counts.dropped_frames == {"blank": 1, "blurred": 1, "too small a change": 1, "frozen": 1}
    assert (counts.frames, counts.kept_frames) == (8, 4)


def test_a_brighter_copy_is_a_duplicate() -> None:
    pictures = steps(4)
    brighter = Image.eval(pictures[1], lambda level: round(level * 0.85 + 20))
    kept, counts = filtered([pictures[0], pictures[1], brighter, pictures[2]], Filters(min_bits=30))
    assert kept == [0, 1, 3]
    assert counts.dropped_frames == {"duplicate": 1}


def test_thresholds_of_zero_leave_out_nothing_but_the_very_same() -> None:
    pictures = [Image.new("RGB", (64, 64), (level, level, level)) for level in (0, 60, 60, 120)]
    kept, counts = filtered(pictures, Filters(min_contrast=0, min_sharpness=0, min_bits=0, min_change=0))
    assert (kept, counts.dropped_frames) == ([0, 1, 3], {"frozen": 1})


def test_pictures_stored_in_several_ways_are_stored_in_one() -> None:
    frames = [Frame(encoded(picture, "PNG" if i % 2 else "JPEG"), i) for i, picture in enumerate(steps(4))]
    ((_, images),) = clips_of(Given(frames), FILTERS, Counts(), shortest=4, longest=9)
    assert all(image[:3] == b"\xff\xd8\xff" for image in images)
    frames[0] = Frame(encoded(moment(0, 0, (120, 96))), 0)
    with pytest.raises(ValueError, match="found images of 2 sizes"):
        next(iter(clips_of(Given(frames), FILTERS, Counts(), shortest=4, longest=9)))


def test_a_cycle_makes_no_row() -> None:
    there = clip(4)
    there.hash[3], there.grey[3] = there.hash[0], there.grey[0]
    drafts = [*drafts_of(there, (0, 0), [], "", TaskOptions(), FILTERS, 0)]
    assert [reason for _, reason in (d for d in drafts if not isinstance(d, Draft))] == ["cyclic"] * 3


def test_other_clips_of_the_same_video_lend_no_frames() -> None:
    """They could show an earlier moment, which would fit before step 2, too."""
    options = TaskOptions(tasks=(Task.PREVIOUS_FRAME_REVIEW,))
    near = [Near(clip(24, 1, name="a.mp4"), (0, 0))]
    (lost,) = drafts_of(clip(4, name="a.mp4#1"), (0, 1), near, "", options, FILTERS, 0)
    assert lost == ("a.mp4#1/previous_frame_review/0", "too few wrong candidates")


def test_foreign_frames_are_near_in_looks_and_encoded_alike() -> None:
    own, far, other = clip(4), clip(8, 1, name="far"), clip(8, 2, name="other")
    own.grey[:] = own.grey // 4 + 90  # a dim scene
    far.grey[:] = 255
    object.__setattr__(other, "form", "PNG")
    near = [Near(far, (0, 1)), Near(other, (0, 2))]
    options = TaskOptions(tasks=(Task.NEXT_FRAME_PREDICTION,))
    assert [*drafts_of(own, (0, 0), near, "", options, FILTERS, 0)] == [
        ("clip-0/next_frame_prediction/0", "too few wrong candidates")
    ]
    dim = clip(8, 3, name="same")
    dim.grey[:] = dim.grey // 4 + 90
    same = [Near(dim, (0, 3))]
    (draft,) = drafts_of(own, (0, 0), same, "", options, FILTERS, 0)
    assert isinstance(draft, Draft)
    assert {ref.clip for ref in draft.wrong} == {3}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Task.NEXT_FRAME_PREDICTION, Task.PREVIOUS_FRAME_REVIEW]), st.integers(0, 2**32))
def test_no_wrong_frame_shows_what_a_right_one_would(task: Task, seed: int) -> None:
    """Neither another moment of the clip nor a frame of another clip nor the spare one of a None row."""
    rng = np.random.default_rng(seed)
    own, other, before = clip(14, 1, name="a#1"), clip(14, 2, name="b"), clip(8, 3, name="a")
    for place in rng.permutation(14)[:4]:  # the clip comes by some moments twice
        copy = int(rng.integers(14))
        own.hash[place], own.grey[place] = own.hash[copy], own.grey[copy]
    for place, lender, frame in ((0, own, 2), (3, own, 7), (5, before, 4), (9, own, 11)):
        other.hash[place], other.grey[place] = lender.hash[frame], lender.grey[frame]
    near = [Near(other, (0, 5)), Near(before, (0, 0))]
    clips = {0: before, 1: own, 5: other}
    for row in drafts_of(own, (0, 1), near, "", TaskOptions((task,), rows_per_clip=3), FILTERS, seed):
        if isinstance(row, tuple):
            continue
        marks = [step.frame for step in row.steps]
        if row.asked == (0,):
            right = [*before.grey, *own.grey[: marks[1]]]
        else:
            right = [*own.grey[marks[row.asked[0] - 1] + 1 : marks[row.asked[0] + 1]]]
        for ref in row.wrong:
            shown = clips[ref.clip].grey[ref.frame]
            assert not any((shown == fits).all() for fits in right)


def test_screens_that_differ_in_their_clock_are_the_same() -> None:
    filters, clips, names = Filters(min_bits=0), [], []
    for number, (shows, pictures) in enumerate(screens()):
        frames = [Frame(encoded(picture, "PNG"), i) for i, picture in enumerate(pictures)]
        ((made, _),) = clips_of(Given(frames, f"task{number}"), filters, Counts(), shortest=4, longest=24)
        clips.append(made)
        names.append([shows[i] for i in made.index if i is not None])
    greys, items = np.concatenate([made.grey for made in clips]), [m.id for m in clips for _ in range(len(m))]
    watched = watched_of(greys, items)
    assert not watched[:3, :10].any(), "the clock"
    assert watched[8:].all()
    rows = 0
    for number, made in enumerate(clips):
        near = [Near(other, (i, 0)) for i, other in enumerate(clips) if i != number]
        options = TaskOptions((Task.NEXT_FRAME_PREDICTION, Task.PREVIOUS_FRAME_REVIEW), rows_per_clip=2)
        for row in drafts_of(made, (number, 0), near, "", options, filters, 0, watched):
            if isinstance(row, tuple):
                continue
            rows += 1
            marks = [step.frame for step in row.steps]
            low, high = (marks[1] + 1, marks[3]) if row.asked == (2,) else (0, marks[1])
            wrong = [names[ref.file][ref.frame] for ref in row.wrong]
            assert not {*wrong} & {*names[number][low:high]}
            assert len({*wrong}) == len(wrong)
    assert rows > 30


def test_what_moves_at_the_edge_of_different_pictures_is_no_clock() -> None:
    greys = np.stack([clip(1, seed).grey[0] for seed in range(20)])
    assert watched_of(greys, [str(i) for i in range(20)]).all()
    one = [np.asarray(screen("home", minute).convert("L").resize((64, 64))) for minute in range(20)]
    assert watched_of(np.stack(one), ["one item"] * 20).all(), "one item alone cannot tell"


def test_no_text_is_lent_by_a_clip_that_shows_the_same() -> None:
    own, same, other = clip(6, 1, "a"), clip(6, 1, "the same again", "same"), clip(6, 2, "b", "other")
    (draft,) = drafts_of(
        own,
        (0, 0),
        [Near(same, (0, 1)), Near(other, (0, 2))],
        "",
        TaskOptions((Task.TEMPORAL_REORDERING,)),
        FILTERS,
        0,
    )
    assert isinstance(draft, Draft)
    assert draft.not_about == ("b",)


@st.composite
def drafted(draw: st.DrawFn) -> tuple[Draft, TaskOptions, int]:
    seed = draw(st.integers(0, 2**32))
    options = TaskOptions(
        tasks=(draw(st.sampled_from(list(Task))),),
        steps=tuple(draw(st.lists(st.integers(3, 8), min_size=1, max_size=3))),
        gaps=draw(st.integers(1, 3)),
    )
    about, other = draw(st.text(max_size=80)), draw(st.text(max_size=80))
    near = [Near(clip(6, seed + 1, other, "near"), (0, 1))]
    (draft,) = drafts_of(
        clip(draw(st.integers(16, 24)), seed, about), (0, 0), near, "", options, FILTERS, seed
    )
    assert isinstance(draft, Draft)
    return draft, options, seed


@settings(max_examples=150, deadline=None)
@given(drafted(), st.sampled_from(LETTERS), st.sampled_from(LETTERS), st.booleans())
def test_every_row_asks_what_it_should(
    given_: tuple[Draft, TaskOptions, int], letter: str, none_letter: str, kind: bool
) -> None:
    draft, _, seed = given_
    negative = ""
    if letter == none_letter:
        possible = draft.negatives
        negative = possible[kind % len(possible)] if possible else ""
        if not negative:
            return
    row = ask(draft, letter, none_letter, negative, np.random.default_rng(seed), WrongOrders({}))
    assert problems_of(row.problem, row.answer, len(row.images)) == []
    assert len({*row.images}) == len(row.images)
    options = parse_options(row.problem)
    assert list(options) == list(LETTERS)
    texts = [text for text in options.values() if text != IMAGE_TAG]
    assert len({*texts}) == len(texts)
    assert options[none_letter] == NONE_OPTION
    assert row.answer == letter
    right_shown = set(draft.right) <= set(row.images)
    if not draft.asked:
        assert set(row.images) == set(draft.steps)
        order = " ".join(str(row.images.index(step) + 1) for step in draft.steps)
        assert (order in options.values()) == (negative != "missing answer")
        assert negative or options[letter] == order
        orders = [tuple(map(int, text.split())) for text in texts if text != NONE_OPTION]
        assert all(1 in {swaps(order, other) for other in orders} for order in orders)
        mirrored = [order[::-1] in orders for order in orders]
        assert all(mirrored) if draft.chained or len(draft.steps) == 3 else not any(mirrored)
    else:
        assert right_shown == (negative != "missing answer")
        assert recognise_task(row.problem) is draft.task or len(draft.asked) > 1
    if len(draft.asked) == 1 and not negative:
        candidates = [letter for letter, text in options.items() if text == IMAGE_TAG]
        shown = dict(zip(candidates, row.images[-len(candidates) :], strict=True))
        assert shown[letter] == draft.right[0]
    text = draft.about if negative != "mismatch" else ""
    assert text in row.problem


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(Task)),
    st.sampled_from([0, 0.1, 0.2, 0.35, 1.0]),
    st.integers(1, 200),
    st.integers(0, 99),
)
def test_letters_are_balanced_and_the_share_of_negatives_is_met(
    task: Task, share: float, rows: int, seed: int
) -> None:
    deal = Deal(task, share, 0.5, seed, "train")
    dealt = [deal.next(("mismatch", "missing answer")) for _ in range(rows)]
    negatives = [kind for *_, kind in dealt if kind]
    assert abs(len(negatives) - share * rows) <= 3
    assert abs(negatives.count("mismatch") - len(negatives) / 2) <= 1
    assert all((letter == none) == bool(kind) for letter, none, kind in dealt)
    if task is Task.TEMPORAL_REORDERING:
        counts = Counter(letter for letter, _, kind in dealt if not kind)
        letters = "ABCD"
    else:
        counts = Counter(letter for letter, *_ in dealt)
        letters = LETTERS if share else "ABCD"
    if counts:
        found = [counts[letter] for letter in letters]
        assert max(found) - min(found) <= 1


def test_a_negative_that_cannot_be_is_made_later() -> None:
    deal = Deal(Task.NEXT_FRAME_PREDICTION, 0.5, 0.5, 0, "train")
    assert all(kind == "" for *_, kind in (deal.next(()) for _ in range(10)))
    assert [kind for *_, kind in (deal.next(("missing answer",)) for _ in range(5))] == ["missing answer"] * 5


def nearest(seeds: range) -> int:
    """In how many rows on a straight way the right candidate is the nearest to the given frames."""
    found = 0
    for seed in seeds:
        line = clip(24, seed)
        for frame in range(24):
            line.grey[frame], line.size[frame] = 8 * frame, 1000
            line.hash[frame] = np.packbits(np.arange(256) < 10 * frame)
        options = TaskOptions(tasks=(Task.NEXT_FRAME_PREDICTION,))
        (draft,) = drafts_of(line, (0, 0), [], "", options, FILTERS, seed)
        assert isinstance(draft, Draft)
        marks = [ref.frame for i, ref in enumerate(draft.steps) if i not in draft.asked]
        apart = [sum(abs(ref.frame - mark) for mark in marks) for ref in (*draft.right, *draft.wrong[:3])]
        found += all(other >= apart[0] for other in apart[1:])
    return found


def test_the_nearest_candidate_is_right_less_often_than_by_a_blind_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = nearest(range(80))
    monkeypatch.setattr(candidates, "DRAWS", 1)
    monkeypatch.setattr(tasks, "TRIES", 1)
    assert chosen < 0.7 * nearest(range(80))


ACTING = (
    *("<|im_end|>", "<|image_pad|>", "<image>", "</s>", "[INST]", "<\uff5cUser\uff5c>"),
    *("A.", "(B)", "B:", "C\u3001", "A) ", "A : ", "B  : ", "\uff21\uff0e", "\uff22:", "**B** ", "Option A:"),
)


@given(st.lists(st.one_of(st.sampled_from(ACTING), st.text(max_size=6)), max_size=8).map("".join))
def test_no_text_acts_in_a_prompt(text: str) -> None:
    """Neither as a tag or a token of a chat template nor as an option."""
    plain = plain_text(text)
    assert not any(mark in plain for mark in ("<|", "|>", "<image>", "</s>", "[INST]", "<\uff5c"))
    asked = f"These photos show {plain}. Which option shows step 3?\nA. {IMAGE_TAG}\nB. {IMAGE_TAG}"
    assert parse_options(asked) == {"A": IMAGE_TAG, "B": IMAGE_TAG}
    assert parse_options(f"These photos show {plain}. Give the order.\nImage 1: {IMAGE_TAG}") == {}
    assert plain.isprintable()
    assert plain_text(plain) == plain or len(plain) > 300


def test_texts_are_one_plain_line() -> None:
    assert plain_text(" a <image>\n</think> b. ") == "a b"
    assert plain_text("la recette, \u00e9tape A : couper, \u00e9tape B  : cuire") == (
        "la recette, \u00e9tape A couper, \u00e9tape B cuire"
    )
    assert (
        plain_text("\uff21\uff0e\u5207\u83dc \uff22\uff0e\u7092\u83dc")
        == "\uff21 \u5207\u83dc \uff22 \u7092\u83dc"
    )
    for end in ("!", "?!", "...", "\u3002", "\uff01 ", "\u2026", "\u0964"):
        assert plain_text(f"a b{end}") == "a b"
    assert plain_text("a \x1b]0;owned\x07 b\x00") == "a ]0;owned b"
    assert len(plain_text("word " * 200)) <= 400
    assert seeded(1, "a").integers(2**60) == seeded(1, "a").integers(2**60)
    assert (
        len({int(seeded(s, n).integers(2**60)) for s, n in permutations([1, 2, 3], 2) for n in [str(n)]}) == 6
    )
