"""Scores a second of our grader and of the published reward, on the same outputs.

    python benchmarks/grading.py
    python benchmarks/grading.py --options --distinct

Each output is `<think>`, words, `</think>` and an answer, written in one of many ways. The published function
is restated here with regular expressions, as it was published. The preset `paper` restates it without them;
the script ends with an error when the two give different scores. Our grader remembers answers that it has
read, because the samples of a prompt give the same few. With `--distinct` no two answers are equal, so it has
nothing to remember.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import measure

from tpru_verl.grading import grade

ANSWERS = (
    "C",
    "C.",
    "(C)",
    "c",
    "**C**",
    r"\boxed{C}",
    "C. Image 3",
    "D",
    "A",
    "E",
    "4 2 3 1",
    "ABCDE",
    "A or C",
)
OPTIONS = {
    "A": "1 3 4 2",
    "B": "4 2 3 1",
    "C": "2 1 4 3",
    "D": "1 2 3 4",
    "E": "None of the choices provided",
}
TEXT = (
    "the robot arm first moves to its left because in image 3 door is open while step 2 shows hand on "
    "handle, so this must come before image 1 and after that box falls; option (A) cannot be right. then"
)

SIGN = re.compile(r"\s*(<|>|/)\s*")
FORM = re.compile(r"<think>.*</think><answer>[A-Z]+</answer>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def published(response: str, answer: str) -> float:
    """The published reward, in the form in which it was published: regular expressions."""
    text = SIGN.sub(r"\1", response)
    first = ANSWER.search(text)
    accuracy = 1.0 if first and first[1].strip().strip("\"'") == answer else 0.0
    return (1 - 0.1) * accuracy + 0.1 * (0.2 if FORM.fullmatch(text) else 0.0)


def outputs(count: int, words: int, distinct: bool) -> list[str]:
    rng = random.Random(0)
    texts = (" ".join(rng.choices(TEXT.split(), k=words)) for _ in range(count))
    tails = (f". Image {i}" if distinct else "" for i in range(count))
    return [
        f"<think>{text}</think>\n<answer>{rng.choice(ANSWERS)}{tail}</answer>"
        for text, tail in zip(texts, tails, strict=True)
    ]


def rate(function: Callable[[str], float], texts: list[str]) -> float:
    """Scores a second of processor time."""
    begin = time.process_time()
    for text in texts:
        function(text)
    return len(texts) / (time.process_time() - begin)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--outputs", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--options", action="store_true", help="give our grader the options, too")
    parser.add_argument("--distinct", action="store_true", help="make no two answers alike")
    args = parser.parse_args()

    texts = outputs(args.outputs, args.words, args.distinct)
    options = OPTIONS if args.options else None
    if any(grade(text, "C").score("paper") != published(text, "C") for text in texts):
        raise SystemExit("the two published functions differ")
    functions: dict[str, Callable[[str], float]] = {
        "published (regular expressions)": lambda text: published(text, "C"),
        "tpru_verl, preset paper": lambda text: grade(text, "C", options=options).score("paper"),
        "tpru_verl, preset tpru": lambda text: grade(text, "C", options=options).score(),
        "tpru_verl, preset tpru_partial": lambda text: grade(text, "C", options=options).score(
            "tpru_partial"
        ),
    }
    size = sum(map(len, texts)) / len(texts)
    rates = measure.in_turn(
        {name: partial(rate, function, texts) for name, function in functions.items()}, args.repeats
    )
    title = f"{len(texts):,} outputs of {args.words} words ({size:,.0f} characters), {args.repeats} runs"
    base = median(next(iter(rates.values())))
    rows = [["", "scores/s of one core", *measure.SPREAD, "times the published"]]
    for name, values in rates.items():
        rows.append([name, *measure.spread(values), f"{median(values) / base:.1f}"])
    print(measure.markdown(rows, title))


if __name__ == "__main__":
    main()
