"""The order of frames by their names: numbers are numbers, and ambiguous names are refused."""

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpru_verl.data.source.names import in_order

IN_ORDER = {
    "differing widths": "1 2 9 10 11 100",
    "padded and not": "frame_001 frame_2 frame_10",
    "decimals with a unit": "t0s t0.25s t0.5s t0.75s t1s t1.25s t10s",
    "decimals as Python writes them": "f_0.0 f_0.25 f_0.5 f_0.75 f_1.0 f_1.25",
    "decimals without zeros": "0 0.05 0.5 1 1.5",
    "decimals of one width": "0.250 0.500 1.000 10.500",
    "a unit makes decimals": "1.05s 1.10s 1.9s",
    "decimal commas": "t0,25s t0,5s t1s",
    "negative numbers": "-10 -2.5 -1 0 1 2.5",
    "signs after text": "t-1.5s t-0.5s t0s t0.5s",
    "plus and minus": "t-2 t-1 t+1 t+2",
    "a sign after a separator": "x_-10 x_-2 x_-1",
    "hyphens": "img-1 img-2 img-10",
    "a typographic minus": "t\N{MINUS SIGN}2 t\N{MINUS SIGN}1 t1",
    "exponents": "1e-05 0.0001 1e-3 2.5e-3 1e+2",
    "several numbers": "cam1_t9 cam1_t10 cam2_t1",
    "times": "00-00-59 00-01-02 00-10-00 01-00-00",
    "times with fractions": "00.01.02.250 00.01.02.500 00.01.10.000",
    "times with letters": "0h1m2s 0h1m10s 1h0m0s",
    "ISO dates": "2023-12-31 2024-01-02 2024-1-10 2024-11-01",
    "ISO times": "2024-01-02T10-15-30 2024-01-02T10-15-31.5 2024-01-03T00-00-00",
    "cameras": "IMG_20240102_095959 IMG_20240102_101500 IMG_20240103_000000",
    "versions": "shot.1.2.9 shot.1.2.10 shot.1.10.0",
    "episodes": "s01e02 s01e10 s02e01",
    "ordinals": "1st 2nd 3rd 10th",
    "descriptions": "01_open 02_pour 10_close",
    "letters": "a b c",
    "steps and their parts": "1a 1b 2 3",
    "numbers and letters": "1a 1b 1c 1d 2a 10a",
    "capitals": "IMG_1 img_2 Img_10",
    "a counter after another number": "cam1_1 cam1_9 cam1_99 cam1_100 cam1_120",
    "a counter after two numbers": "clip_3_1 clip_3_99 clip_3_100",
    "a counter after a padded number": "S001_95 S001_99 S001_100 S001_104",
    "a time after a number": "0001_0ms 0001_50ms 0001_100ms 0001_1100ms",
    "two counters": "1_98 1_102 2_1 2_100",
    "frames that look like years": "take_1_1999 take_1_2000 take_2_2001",
    "a day that alone varies": "01-02-2024 03-02-2024 10-02-2024",
    "exponents without a sign beside others": "1E-1 5E-1 1E0",
    "months with their numbers": "01_January 02_February 03_March 10_October",
    "a month that alone varies not": "15-Mar 16-Mar 17-Mar",
    "words that begin like months": "01_mark 02_set 03_out 04_decide",
    "frames that look like years after a word": "cam1_frame1999 cam1_frame2000 cam2_frame2001",
    "times in one minute and second": "10-05-00 10-10-00 11-05-00",
    "three counters": "01_01_01 01_01_02 01_02_01 02_01_01",
    "times after a date": "2024-01-30-12-15-10 2024-01-31-11-15-10 2024-02-01-10-15-10",
    "six digits that count": "010105 010110 010210 020105",
    "a camera called PM": "pm_1 pm_2 pm_10",
    "other digits": "\uff11 \uff12 \uff11\uff10",
}
AMBIGUOUS = {
    "a version beside a decimal": ("frame-1.5 frame-1.5.2", "that of a version"),
    "decimals or versions": ("1.8 1.9 1.10 1.11", "decimals or versions"),
    "parts of a counter": ("2.3 2.6 2.9 2.12", "decimals or versions"),
    "a version by its name": ("v1 v1.9 v1.11", "decimals or versions"),
    "equal numbers": ("1 01 2", "their numbers are equal"),
    "equal decimals": ("t0.5s t0.50s t1s", "their numbers are equal"),
    "a name without a number": ("1 2 cover", "only one of them has a number"),
    "a first copy": ("frame frame1 frame2", "only one of them has a number"),
    "two series": ("left_1 left_2 right_1 right_2", "the text before their numbers differs"),
    "numerals beyond ASCII": (
        "\u7b2c\u4e00\u5e27 \u7b2c\u4e8c\u5e27 \u7b2c\u4e09\u5e27",
        "no number says which is first",
    ),
    "hashes that begin with digits": ("3fa2b1c9 4e1a77d0 9c1d22aa 71be00cd", "hexadecimal"),
    "marks of thousands and decimals": ("1,000.25 1,000.5", "both '.' and ','"),
    "words": ("start middle end", "no number says which is first"),
    "random names": ("LF_ajq LF_rir LF_qgy", "no number says which is first"),
    "one number, two words": ("1_open 1_close 2_cut", "no number says which is first"),
    "a sign or a hyphen": ("img-1 img-2 img3", "sign or a hyphen"),
    "mixed units": ("t500ms t1s t2s", "their units differ: 's' and 'ms'"),
    "a unit that is missing": ("500 1k 2k", "their units differ"),
    "thousands": ("999 1,000 1,500", "mark thousands"),
    "thousands with a space": ("500|1 000|2 000", "more numbers than the other"),
    "thousands with an underscore": ("999 1_000 1_001", "more numbers than the other"),
    "thousands of thousands": ("999_999 1_000_000", "more numbers than the other"),
    "thousands beside a time": ("59-00_1 01-00-00", "more numbers than the other"),
    "times of two forms": ("58-00 59-00 01-00-00", "more numbers than the other"),
    "hexadecimal numbers": ("0009 000a 000b 0010", "hexadecimal"),
    "an exponent or a letter": ("1e1 1e2 2e1", "an exponent or a letter"),
    "days before months": ("01-02-2024 02-01-2024 03-01-2024", "2024-01-31"),
    "months by name": ("02-Jan-2024 01-Feb-2024", "2024-01-31"),
    "days in eight digits": ("31122023 01012024", "2024-01-31"),
    "days before months of a short year": ("30.01.24 01.02.24", "2024-01-31"),
    "months before days of a short year": ("12-31-23 01-01-24", "2024-01-31"),
    "a short year in six digits": ("300124 010224", "2024-01-31"),
    "a short date after a number": ("cam1_30.01.24 cam1_01.02.24", "2024-01-31"),
    "a day and a month": ("30-Jan 1-Feb", "2024-01-31"),
    "a month and no year": ("15 Mar|2 Apr", "2024-01-31"),
    "a date without separators": ("31JAN2024 01FEB2024", "2024-01-31"),
    "a month in German": ("28. Februar 2024|1. M\u00e4rz 2024", "2024-01-31"),
    "a month in German without a year": ("30 Mai|1 Juni", "2024-01-31"),
    "a month in French as macOS writes it": ("28 fe\u0301vrier|1 mars", "2024-01-31"),
    "a month in Spanish": ("28 de febrero de 2024|1 de marzo de 2024", "2024-01-31"),
    "an ordinal day": ("30th January|1st February", "2024-01-31"),
    "a month in another language": ("31. ledna 2024|1. \u00fanora 2024", "2024-01-31"),
    "a clock of 12 hours in Spanish": ("a 12.59.06 p.\xa0m.|a 1.00.10 p.\xa0m.", "12 hours"),
    "a clock of 12 hours in Chinese": ("\u4e0b\u534812.59.58 \u4e0b\u53481.00.10", "12 hours"),
    "a clock of 12 hours in Korean": ("\uc624\ud6c4 12.59.58|\uc624\ud6c4 1.00.10", "12 hours"),
    "a clock of 12 hours in Greek": ("12.59.58 \u03bc.\u03bc.|1.00.10 \u03bc.\u03bc.", "12 hours"),
    "half of the day first": ("PM 12.59.58|PM 1.00.10", "12 hours"),
    "a clock of 12 hours": ("at 12.59\u202fPM|at 1.05\u202fPM", "12 hours"),
}


@pytest.mark.parametrize("kind", IN_ORDER)
def test_numbers_in_names_give_the_order(kind: str) -> None:
    names = [f"{stem}.png" for stem in IN_ORDER[kind].split()]
    for seed in range(5):
        assert in_order(random.Random(seed).sample(names, len(names))) == names


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_ambiguous_names_are_refused_with_the_reason(kind: str) -> None:
    text, reason = AMBIGUOUS[kind]
    names = [f"{stem}.png" for stem in (text.split("|") if "|" in text else text.split())]
    with pytest.raises(ValueError, match="whose order is ambiguous") as refused:
        in_order(names)
    assert reason in str(refused.value)
    assert "rename the files" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_frame_under_two_suffixes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'1\.jpg' and '1\.png'.*numbers are equal"):
        in_order(["1.jpg", "1.png", "2.jpg"])


def test_one_name_needs_no_order() -> None:
    assert in_order(["cover.png"]) == ["cover.png"]
    assert in_order([]) == []


@given(
    st.lists(st.decimals(-(10**6), 10**6, places=3), min_size=1, max_size=20, unique=True),
    st.sampled_from(["t{}s", "{} sec", "x=+{}", "{}"]),
    st.randoms(use_true_random=False),
)
def test_decimals_of_any_width_and_sign_are_ordered_or_refused(
    values: list[Decimal], form: str, shuffled: random.Random
) -> None:
    names = [
        form.format(f"{value.normalize():f}").replace("+-", "-") + ".png"
        for value in sorted({*values, Decimal(0)})
    ]
    try:
        found = in_order(shuffled.sample(names, len(names)))
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
        assert found == names
    assert not refused or ("s" not in form and "decimals or versions" in refused)


@given(st.lists(st.text("ab01.,-+_e s", min_size=1, max_size=8), max_size=8, unique=True))
def test_any_names_are_ordered_alike_however_they_come_or_refused_alike(stems: list[str]) -> None:
    def outcome(names: list[str]) -> object:
        try:
            return in_order(names)
        except ValueError as error:
            return "ambiguous" in str(error)

    names = [f"{stem}.png" for stem in stems]
    assert outcome(names) == outcome(names[::-1])
