"""`tpru eval --decide`: what the valid answers are, where they part, and what their scores say."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.benchmark_rows import tpru_hub
from support.endpoint import Asked, endpoint
from support.rows import picture, reordering, write_parquet

from tpru_verl.eval.decide import (
    ToldScores,
    best_of,
    best_told,
    candidates_of,
    filled,
    forks_of,
    probabilities_of,
    scores_of,
    steps_of,
    told_apart,
)
from tpru_verl.eval.item import Item
from tpru_verl.eval.scoring import judge

Tpru = Callable[..., tuple[object, str, str]]


def item(answer: str, images: int = 4, **more: Any) -> Item:
    return Item("1", "Order them." + "<image>" * images, answer, (b"",) * images, **more)


class TestCandidates:
    def test_letters_of_options(self) -> None:
        assert candidates_of(item("B", options={"A": "x", "B": "y", "D": "z"})) == ("A", "B", "D")

    @pytest.mark.parametrize(
        ("answer", "images", "count", "one"),
        [
            ("2 1 4 3", 4, 24, "4 3 2 1"),
            ("BDAC", 6, 24, "DCBA"),
            ("", 3, 6, "3 2 1"),
            ("", 5, 120, "5 4 3 2 1"),
        ],
    )
    def test_orders(self, answer: str, images: int, count: int, one: str) -> None:
        found = candidates_of(item(answer, images))
        assert len(set(found)) == count
        assert one in found
        right = [said for said in found if judge(item(answer or one, images), said).correct]
        assert len(right) == 1  # the grader reads each of them, and takes one for the truth

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            (item("A", options={"A": "x"}), "1 option"),
            (item("", 6), "order of 6"),
            (item("", 1), "order of 1"),
            (item("x", accepted=("x",)), "in words"),
        ],
    )
    def test_rows_whose_answers_cannot_be_listed(self, row: Item, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            candidates_of(row)


class TestForks:
    def test_four_pictures_part_at_seventeen_places(self) -> None:
        paths = [steps_of(" ".join(order)) for order in permutations("1234")]
        assert paths[0] == ("1", " 2", " 3", " 4")
        assert [len(fork.path) for fork in forks_of(paths)] == [0] + [1] * 4 + [2] * 12

    def test_an_option_of_several_tokens(self) -> None:
        paths = [(7, 1), (7, 2, 5), (7, 2, 6), (8, 2, 5)]
        assert {(fork.path, fork.following) for fork in forks_of(paths)} == {
            ((), (7, 8)),
            ((7,), (1, 2)),
            ((7, 2), (5, 6)),
        }

    def test_scores_are_the_models_own_where_nothing_else_may_follow(self) -> None:
        """Against a known model, in which each place has probabilities for the labels that are left."""
        draw = random.Random(0)
        orders = [" ".join(order) for order in permutations("1234")]
        paths = {order: steps_of(order) for order in orders}
        model: dict[tuple[str, ...], dict[str, float]] = {}
        for fork in forks_of([*paths.values()]):
            weights = [draw.random() for _ in fork.following]
            model[fork.path] = {
                step: math.log(weight / sum(weights))
                for step, weight in zip(fork.following, weights, strict=True)
            }
        found = probabilities_of(scores_of(paths, model))
        assert sum(found.values()) == pytest.approx(1)
        for order, path in paths.items():
            chances = [math.exp(model[path[:i]][path[i]]) for i in range(3)]
            assert found[order] == pytest.approx(math.prod(chances))

    def test_the_likeliest_tokens_of_an_endpoint(self) -> None:
        """As where nothing but an answer may follow: " E" is not "E"."""
        top = {" E": -0.6, "C": -1.6, " A": -2.4, "A": -2.7, "The": -4.6}
        found = told_apart([top], ["A", "B", "C", "E"])
        assert found == ToldScores(
            {"A": -2.7, "C": -1.6}, -4.6
        )  # B and E have no more than the least of the list
        spaced = told_apart([{" ": -0.1, "\n": -5}, {"2": -0.1, "3": -2.0}], [" 2", " 3"])
        assert spaced == ToldScores({" 2": -0.1, " 3": -2.0}, -2.0)
        assert told_apart([{" 2": -0.1, " 3": -3}, {" 1": 0}], [" 2", " 3"]).listed == {" 2": -0.1, " 3": -3}
        assert told_apart([{"2": -0.1, "<": -3}, {"2": 0}], [" 2", " 3"]) == ToldScores(
            {}, 0.0
        )  # "42" is no order
        with pytest.raises(ValueError, match="log-probabilities"):
            told_apart([], ["A"])

    def test_a_guided_list_fills_another(self) -> None:
        """Its log-probabilities are higher by one number, which a step of both lists tells."""
        guided = ToldScores({"A": -0.5, "B": -1.5, "C": -3.5}, -9.0)
        assert filled(ToldScores({"B": -2.5}, -4.0), guided, alone=False) == ToldScores(
            {"A": -1.5, "B": -2.5, "C": -4.5}, -4.0
        )
        assert filled(ToldScores({}, -4.0), guided, alone=True).listed == guided.listed
        assert filled(ToldScores({}, -4.0), guided, alone=False).listed == {}  # other places may decide

    def test_an_answer_that_no_list_has(self) -> None:
        """It may have the most that it can have, but it is never taken for the answer."""
        paths = {"A": ("A",), "B": ("B",), "C": ("C",)}
        found = best_told(paths, {(): ToldScores({"C": -2.0}, -2.0)})
        assert found == ("C", {"A": -2.0, "B": -2.0, "C": -2.0}, False)
        assert best_told(paths, {(): ToldScores({"A": -1, "B": -0.5, "C": -3}, -4)})[::2] == ("B", True)
        with pytest.raises(ValueError, match="surely the likeliest"):
            best_told(paths, {(): ToldScores({}, -3.0)})


def favourite(order: str) -> Callable[[Asked], Mapping[str, float]]:
    """A server that continues towards one order; a label and the space before it are one token."""

    def tops(asked: Asked) -> Mapping[str, float]:
        said = asked.text.rpartition("<answer>")[2].split()
        wanted = order.split()[len(said)] if order.split()[: len(said)] == said else "9"
        return {" " * bool(said) + label: math.log(0.7 if label == wanted else 0.1) for label in "1234"}

    return tops


class TestEndpoint:
    def test_orders_are_scored_step_by_step(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        row = {
            "problem": "".join(f"Image {i}: <image>\n" for i in range(1, 5)) + "What is the correct order?",
            "answer": "3 1 4 2",
            "images": [picture(i) for i in range(4)],
        }
        source = write_parquet(tmp_path / "rows.parquet", [row])
        with endpoint(tops=favourite("3 1 4 2")) as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, out, err = tpru_eval(*args, "--decide", "score")
        assert code == 0, err
        assert len(server.asked) == 17
        assert all(asked.body.get("continue_final_message") for asked in server.asked)
        (line,) = [json.loads(text) for text in (tmp_path / "out/rows.parquet.score.jsonl").open()]
        (sample,) = line["samples"]
        assert (sample["response"], sample["correct"]) == ("3 1 4 2", True)
        assert len(sample["probabilities"]) == 24
        assert sample["probabilities"]["3 1 4 2"] > 0.5
        assert 0 < sample["brier"] < 0.5
        assert "Brier" in out
        page = (tmp_path / "out/page.html").read_text()
        assert "probability of the answer" in page

    def test_a_letter_after_a_space_is_no_answer(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        """As in this process, and as `guided` lets none follow. What the list cannot tell is said."""
        source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])
        top = {" E": -0.6, " A": -2.4, "A": -2.7, "B": -3.0, "The": -4.6}
        with endpoint(tops=lambda asked: top) as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, _, err = tpru_eval(*args, "--decide", "score")
        assert code == 0, err
        (line,) = [json.loads(text) for text in (tmp_path / "out/rows.parquet.score.jsonl").open()]
        (sample,) = line["samples"]
        assert sample["response"] == "A"
        odds = sample["probabilities"]
        assert odds["A"] / odds["B"] == pytest.approx(math.exp(0.3))
        assert "1 of 1 rows have valid answers outside of the endpoint's list of likeliest tokens" in err

    def test_what_the_list_has_not_a_guided_answer_tells(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])

        def tops(asked: Asked) -> Mapping[str, float]:
            letters = {"A": -3.0, "B": -2.0, "C": -0.5, "D": -2.5, "E": -4.0}
            guided = asked.body.get("structured_outputs") == {"choice": [*letters]}
            return {**letters, " E": -9999.0} if guided else {" E": -0.6, "The": -4.6}

        with endpoint(tops=tops) as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, _, err = tpru_eval(*args, "--decide", "score")
        assert code == 0, err
        (line,) = [json.loads(text) for text in (tmp_path / "out/rows.parquet.score.jsonl").open()]
        (sample,) = line["samples"]
        assert sample["response"] == "C"
        assert sample["probabilities"]["C"] / sample["probabilities"]["E"] == pytest.approx(math.exp(3.5))
        assert "outside of the endpoint's list" not in err

    def test_no_letter_in_the_list_is_no_guess(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])
        with endpoint(tops=lambda asked: {" E": -0.6, "The": -4.6}) as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, _, err = tpru_eval(*args, "--decide", "score")
        assert code == 3
        assert "found no valid answer that is surely the likeliest" in err

    def test_three_ways_beside_each_other(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        source = tpru_hub(tmp_path / "rows")

        def rule(asked: Asked) -> str:
            choice = asked.body.get("structured_outputs", {}).get("choice")
            assert choice in (None, ["A", "B", "C", "D", "E"])
            return choice[1] if choice else "I see several pictures."

        with endpoint(rule, tops=lambda asked: {"C": -0.1, "D": -3.0}) as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, out, err = tpru_eval(*args, "--decide", "generate,guided,score")
            assert code == 0, err
            asked = len(server.asked)
            assert tpru_eval(*args, "--decide", "score,guided")[0] == 0  # all of it is stored
            assert len(server.asked) == asked == 20  # A, B and E are in no list: a guided one is asked for
        (tmp_path / "out/summary.json").unlink()
        tpru_eval(*args[:1], "--base-url", server.url, *args[3:], "--decide", "generate,guided,score")
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        groups = summary["benchmarks"]
        name = source.name
        found = {way: groups[way]["accuracy"] for way in groups}
        assert found == {name: 0, f"{name}.guided": 0.2, f"{name}.score": 0.2}
        assert groups[name]["unparsed"] == 1
        assert "calibration" in groups[f"{name}.score"]
        assert "calibration" not in groups[f"{name}.guided"]
        for way in ("guided", "score"):
            difference = summary["decisions"][f"{name}.{way}"]["difference"]
            assert difference["mean"] == pytest.approx(0.2)
            assert difference["low"] <= 0.2 <= difference["high"]
        assert "Against generate, on the same rows" in out

    def test_after_reasoning(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        source = tpru_hub(tmp_path / "rows")

        def tops(asked: Asked) -> Mapping[str, float]:
            assert asked.text.endswith("<think>B fits.</think><answer>")
            return {"B": -0.1, "A": -4, "C": -4, "D": -5, "E": -5}

        def rule(asked: Asked) -> str:
            return "<think>B fits.</think>" + "<answer>B</answer>" * (asked.body.get("stop") is None)

        with endpoint(rule, tops=tops) as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, _, err = tpru_eval(*args, "--decide", "score", "--after-reasoning")
            assert code == 0, err
            assert len(server.asked) == 10
            code, _, err = tpru_eval(*args, "--decide", "generate,score", "--after-reasoning")
            assert code == 0, err
            assert len(server.asked) == 15  # the responses alone

    @pytest.mark.parametrize("decide", ["score", "guided"])
    @pytest.mark.parametrize(
        ("finish", "reasoning", "begun", "cut_off"),
        [
            ("length", "<think>long long", "<think>long long</think>\n\n<answer>", 1),
            ("length", "long long", "long long</think>\n\n<answer>", 1),  # the template may have opened it
            ("length", "<think>B fits.</think> So", "<think>B fits.</think> So<answer>", 1),
            ("stop", "<think>B fits. ", "<think>B fits. </think>\n\n<answer>", 0),
            ("stop", "B fits. ", "B fits. <answer>", 0),
        ],
    )
    def test_reasoning_that_did_not_end(
        self,
        tpru_eval: Tpru,
        tmp_path: Path,
        decide: str,
        finish: str,
        reasoning: str,
        begun: str,
        cut_off: float,
    ) -> None:
        """It is closed before the answer, and counts as cut off where it was."""
        source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])

        def rule(asked: Asked) -> str:
            return reasoning if asked.body.get("stop") else "B"

        with endpoint(
            rule, tops=lambda asked: {letter: -4 + 3.9 * (letter == "B") for letter in "ABCDE"}
        ) as server:
            server.finish = finish
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, _, err = tpru_eval(*args, "--decide", decide, "--after-reasoning")
        assert code == 0, err
        thought, answered = server.asked
        assert answered.text == thought.text + begun
        (group,) = json.loads((tmp_path / "out/summary.json").read_text())["benchmarks"].values()
        assert (group["cut_off"], group["accuracy"]) == (cut_off, 1)

    def test_a_server_without_log_probabilities(self, tpru_eval: Tpru, tmp_path: Path) -> None:
        source = tpru_hub(tmp_path / "rows")
        with endpoint(lambda asked: "B") as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out"]
            code, _, err = tpru_eval(*args, "--decide", "score")
        assert code == 3
        assert "found no log-probabilities" in err
        (group,) = json.loads((tmp_path / "out/summary.json").read_text())["benchmarks"].values()
        assert group["failed"] == 5

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (
                ["--decide", "vote"],
                "--decide: found 'vote', expected one or more of generate, guided, score",
            ),
            (["--decide", ","], "--decide: found"),
            (["--after-reasoning"], "expected guided or score"),
            (["--decide", "score", "--after-reasoning", "--n", 2, "--temperature", 1], "--n: found 2"),
        ],
    )
    def test_settings_that_cannot_be_meant(
        self, tpru_eval: Tpru, tmp_path: Path, args: list[object], said: str
    ) -> None:
        source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])
        args = ["tiny", "--base-url", "http://127.0.0.1:9/v1", "--rows", source, "--out", tmp_path, *args]
        code, _, err = tpru_eval(*args)
        assert code == 2
        assert said in err


def test_tokens_of_candidates_are_those_of_the_whole_text(checkpoint: Path) -> None:
    """Read with what stands before them: a candidate's first letter may become one token with it."""
    transformers = pytest.importorskip("transformers")
    from tpru_verl.eval.engines.candidates import paths_of

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = ["<|im_start|>assistant\n<answer>", "<|im_start|>user\nx<|im_end|>\n", "no special token "]
    for text, candidates in product(texts, (["A", "B"], ["1 2 3", "3 2 1"])):
        shared, paths = paths_of(tokenizer, text, candidates)
        for candidate, path in paths.items():
            assert [*shared, *path] == tokenizer(text + candidate)["input_ids"]
        assert best_of({c: float(i) for i, c in enumerate(paths)}) == candidates[-1]
        assert all(a != b for a, b in pairwise(paths.values()))


def test_a_vllm_that_gives_its_likeliest_tokens_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 0.24, which veRL pins: a letter that is not among them has the lowest value of the list at most."""
    transformers, vllm = pytest.importorskip("transformers"), pytest.importorskip("vllm")
    from tpru_verl.eval.engines.base import Request
    from tpru_verl.eval.engines.candidates import LIKELIEST, scoring_job

    class Params:
        def __init__(self, *, max_tokens: int, temperature: float, logprobs: int) -> None:
            assert (max_tokens, temperature, logprobs) == (1, 0, LIKELIEST)

    monkeypatch.setattr(vllm, "SamplingParams", Params)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    item = Item("x", "Which?", "A", (), {"A": "1", "B": "2", "C": "3"})
    request = Request("key", item, "Which?", "score", ("A", "B", "C"))
    job = scoring_job(request, {"prompt": "<|im_end|>"}, tokenizer)
    ((a,), (b,), _) = job.paths.values()
    after = {a: -2.0, b: -0.5, 0: -3.0}
    logprobs = [{token: SimpleNamespace(logprob=value) for token, value in after.items()}]
    job.outputs[0] = SimpleNamespace(prompt_token_ids=[1], outputs=[SimpleNamespace(logprobs=logprobs)])
    reply = job.reply()
    assert reply.texts == ["B"]
    assert reply.scores == {"A": -2.0, "B": -0.5, "C": -3.0}


@pytest.mark.parametrize("cache", ["lru", "shm"])
def test_the_pictures_of_a_row_are_read_once(cache: str) -> None:
    """All prompts are sent, in the order of the forks; shared memory counts how often pictures are read."""
    from tpru_verl.eval.engines.base import Request
    from tpru_verl.eval.engines.candidates import Job

    sent: list[dict[str, object]] = []

    def enqueue(prompts: Sequence[dict[str, object]], params: Sequence[str], *, use_tqdm: bool) -> list[str]:
        sent.extend({**prompt, "asked": asked} for prompt, asked in zip(prompts, params, strict=True))
        return [f"{number}-x" for number in range(len(prompts))]

    def add_request(name: str, prompt: dict[str, object], params: str) -> str:
        sent.append({**prompt, "asked": params})
        return f"{name}-x"

    def render(prompts: Sequence[dict[str, object]]) -> list[dict[str, object]]:
        return [{"prompt_token_ids": [7, 9, 9], "pictures": "named"} for _ in prompts]

    llm = SimpleNamespace(
        enqueue=enqueue,
        renderer=SimpleNamespace(render_cmpl=render),
        llm_engine=SimpleNamespace(add_request=add_request),
        request_counter=iter(range(1, 9)),
        model_config=SimpleNamespace(multimodal_config=SimpleNamespace(mm_processor_cache_type=cache)),
    )
    paths = {"12": (1, 2), "13": (1, 3), "21": (2, 1)}
    forks = forks_of([*paths.values()])
    request = Request("key", Item("x", "Which?", "A", (), {}), "Which?", "score", tuple(paths))
    job = Job(request, {"prompt_token_ids": [7], "pictures": "pixels"}, ["root", "one"], forks, paths)
    assert len({*job.enqueue(llm)}) == len(forks) == 2  # type: ignore[arg-type]
    again = {"prompt_token_ids": [7, 9, 9, 1], "pictures": "named"}
    if cache == "shm":
        again = {"prompt_token_ids": [7, 1], "pictures": "pixels"}
    first = {"prompt_token_ids": [7], "pictures": "pixels", "asked": "root"}
    assert sent == [first, {**again, "asked": "one"}]
