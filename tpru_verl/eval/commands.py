"""`tpru eval`: `run` evaluates a model, `compare` compares two results, `export` serves other harnesses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tpru_verl.data.commands import AnswerKey, Answers, ImageKey, ImageRoot, ProblemKey, keys_of
from tpru_verl.eval.benchmarks import NAMES
from tpru_verl.eval.options import (
    PATCH,
    AfterReasoning,
    BaseUrl,
    Concurrency,
    MaxModelLen,
    MaxPixels,
    MaxTokens,
    MinPixels,
    Model,
    More,
    Patch,
    Retries,
    Style,
    Timeout,
    check_options,
    check_pixels,
    continued,
    engine_of,
    pairs_of,
)

if TYPE_CHECKING:
    from tpru_verl.eval.benchmarks import Benchmark

VALUES = ("id", "answer", "probability", "response")  # of a column of `predict`


class _RunByDefault(TyperGroup):
    """`tpru eval MODEL` is `tpru eval run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Evaluate a model or a server on the benchmarks of the paper, and tell whether a gain is real.",
    epilog="`tpru eval MODEL` is short for `tpru eval run MODEL`. `tpru eval run --help` lists its options.",
)

BenchNames = Annotated[
    str, typer.Option("--bench", help=f"One or more benchmarks, separated by commas: {', '.join(NAMES)}.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BENCH=SOURCE",
        help="Rows of a benchmark: a file, a folder or a Hub id, in the layout of the Hub or of VLMEvalKit. "
        "Default: VLMEvalKit's table in the folder $LMUData if it is there, else the Hub.",
    ),
]


def _hint(model: str, more: Sequence[str]) -> str:
    """What somebody meant who wrote more than a model: a command that is misspelt, or rows."""
    from difflib import get_close_matches

    commands = [found.callback.__name__ for found in app.registered_commands if found.callback]
    near = get_close_matches(model, commands, 1)
    meant = f"`tpru eval {near[0]}`" if near else f"one model; rows are given as --rows {more[0]}"
    return f"{model}: found {' '.join(more)} after it, expected {meant}"


def _sources(data: list[str] | None, benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """The source of each benchmark that `--data` names. Raises ValueError for one that is not chosen."""
    sources = pairs_of("--data", data)
    if unknown := set(sources) - {benchmark.name for benchmark in benchmarks}:
        raise ValueError(f"--data: found {unknown.pop()!r}, expected one of the benchmarks of --bench")
    return sources


@app.command(
    context_settings={"allow_extra_args": True},  # `_hint` says what they may be
    epilog="Examples:\n\n"
    "- `tpru eval Qwen/Qwen2.5-VL-7B-Instruct --bench tpru-test,muirbench`\n\n"
    "- `tpru eval outputs/merged --rows data/mine@test`\n\n"
    "- `tpru eval my-model --base-url http://localhost:8000/v1 --bench tpru-test --out outputs/eval/mine`",
)
def run(
    context: typer.Context,
    model: Model,
    bench: Annotated[
        str | None,
        typer.Option(
            help=f"One or more benchmarks, separated by commas: {', '.join(NAMES)}. Default: tpru-test, "
            "or none with --rows."
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Your own rows: a file, a folder or a Hub id that `tpru data` reads, with @SPLIT where it "
            "has several. Can be given several times.",
        ),
    ] = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results. Default: outputs/eval/MODEL.")] = None,
    data: Data = None,
    style: Style = "tpru",
    min_pixels: MinPixels = 16384,
    max_pixels: MaxPixels = 36864,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature. 0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that together have this probability.")
    ] = 1.0,
    max_tokens: MaxTokens = 1024,
    n: Annotated[
        int, typer.Option("--n", min=1, help="Answers for each row. More than 1 adds pass@k and majority.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the sampling and of --limit.")] = 0,
    circular: Annotated[
        bool,
        typer.Option(
            "--circular",
            help="Ask each row once for each rotation of its options. A row is right if all answers are.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask only this many rows of each benchmark, drawn at random.")
    ] = None,
    decide: Annotated[
        str,
        typer.Option(
            help="What decides: generate (the answer in the response), guided (the model can write nothing "
            "but a valid answer), score (the log-probability of each valid answer), or several, separated "
            "by commas."
        ),
    ] = "generate",
    after_reasoning: AfterReasoning = False,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    timeout: Timeout = 600.0,
    retries: Retries = 6,
    patch: Patch = PATCH,
    max_model_len: MaxModelLen = None,
    option: More = None,
) -> None:
    """Ask a model about every row, judge the answers, and write the results and a page.

    If a run was interrupted, the same command continues it and asks nothing twice. Exit codes: 0 done,
    3 all rows of a benchmark failed, so that its accuracy of 0 measures nothing.
    """
    from tpru_verl.eval.asking import EvalOptions, say
    from tpru_verl.eval.benchmarks import find
    from tpru_verl.eval.benchmarks.own import own
    from tpru_verl.eval.engines.base import Sampling
    from tpru_verl.eval.failures import INCOMPLETE, lines_of_benchmark
    from tpru_verl.eval.report import tables
    from tpru_verl.eval.run import evaluate
    from tpru_verl.files import check_place
    from tpru_verl.terminal import options_checked, results

    out = out or Path("outputs/eval") / model.strip("/").replace("/", "--")
    with options_checked():
        if context.args:
            raise ValueError(_hint(model, context.args))
        keys = keys_of(problem_key, answer_key, image_key, image_root, answers)
        benchmarks = find(bench or "tpru-test") if bench or not rows else []
        sources = _sources(data, benchmarks)
        sampling = Sampling(max_tokens, temperature, top_p, n, seed)
        ways = tuple(dict.fromkeys(name.strip() for name in decide.split(",") if name.strip()))
        options = EvalOptions(style, circular, limit, ways, after_reasoning)
        if n > 1 and after_reasoning:
            raise ValueError(f"--n: found {n} with --after-reasoning, expected 1")
        check_pixels(min_pixels, max_pixels, patch)
        extra = check_options(option)
        check_place("--out", out, folder=True)
    chosen = [*((benchmark, sources.get(benchmark.name)) for benchmark in benchmarks), *own(rows or [], keys)]
    engine = engine_of(
        model,
        sampling,
        (min_pixels, max_pixels),
        base_url=base_url,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        patch=patch,
        max_model_len=max_model_len,
        extra=extra,
    )
    with continued(out):
        summary = evaluate(chosen, engine, options, out, model)
    console = results()
    for found in tables(summary):
        console.print(found)
    console.print(f"Look at {out / 'page.html'}; all answers are in {out}", soft_wrap=True, highlight=False)
    measured = [*summary["benchmarks"].values()]
    for one in measured:
        for line in lines_of_benchmark(one["title"], one["n"], one["failures"]):
            say(line, "yellow")
    if any(one["failed"] == one["n"] for one in measured):
        raise typer.Exit(INCOMPLETE)


@app.command(
    epilog="Examples:\n\n"
    "- `tpru eval predict models/mine --rows test.csv --out answers.csv --decide score`\n\n"
    "- `tpru eval predict models/mine --rows test.csv --out answers.csv --answers ranks --column Id=id "
    "--column Answer=answer`"
)
def predict(
    model: Model,
    rows: Annotated[
        str, typer.Option(metavar="SOURCE", help="Rows of any source. A column of answers is not read.")
    ],
    out: Annotated[Path, typer.Option(help="The table to write: .csv or .tsv.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help=f"A column of the table and what it holds: {', '.join(VALUES)}. Can be given several times. "
            "Default: id, answer, and probability where answers are scored.",
        ),
    ] = None,
    problem_key: ProblemKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    decide: Annotated[
        str, typer.Option(help="What decides: generate, guided or score, as in `tpru eval run`.")
    ] = "generate",
    after_reasoning: AfterReasoning = False,
    style: Style = "tpru",
    min_pixels: MinPixels = 16384,
    max_pixels: MaxPixels = 36864,
    max_tokens: MaxTokens = 1024,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    timeout: Timeout = 600.0,
    retries: Retries = 6,
    patch: Patch = PATCH,
    max_model_len: MaxModelLen = None,
    option: More = None,
) -> None:
    """Answer rows, and write a table of the answers, in the order of the rows.

    Answers that the rows have are not read.

    `--answers orders` and `--answers ranks` also say in which form an order is written: [3, 1, 4, 2].
    Exit codes: 0 every row has a response, 3 the table is written but a row is broken or a request failed.
    """
    from tpru_verl.data.source.cells import names_of
    from tpru_verl.data.source.parts import files_of
    from tpru_verl.eval import predict as work
    from tpru_verl.eval.asking import EvalOptions, say
    from tpru_verl.eval.decide import DECIDES, GENERATE
    from tpru_verl.eval.engines.base import Sampling
    from tpru_verl.eval.failures import INCOMPLETE, lines_of
    from tpru_verl.files import check_output, check_place
    from tpru_verl.terminal import options_checked

    with options_checked():
        if decide not in DECIDES:
            raise ValueError(f"--decide: found {decide!r}, expected one of {', '.join(DECIDES)}")
        columns = work.columns_of(out, pairs_of("--column", column), decide)
        check_place("--out", out, folder=False)
        keys = keys_of(problem_key, None, image_key, image_root, answers)
        options = EvalOptions(style, decide=(decide,), after_reasoning=after_reasoning)
        check_pixels(min_pixels, max_pixels, patch)
        extra = check_options(option)
    for file in (out, work.responses_of(out)):
        check_output("--out", file, files_of(rows))
    kind = answers.value if answers else None
    loaded = work.load_rows(rows, keys)
    engine = engine_of(
        model,
        Sampling(max_tokens),
        (min_pixels, max_pixels),
        base_url=base_url,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        patch=patch,
        max_model_len=max_model_len,
        extra=extra,
    )
    with continued(out):
        found = work.predict(loaded, engine, options, out, columns, kind)
    say(f"{out}: {found.answers:,} of {len(loaded.items):,} answers")
    for line in lines_of(found.failures):
        say(f"  {line}", "yellow")
    if found.unread:
        hint = "; --decide guided or score lets the model write nothing else" if decide == GENERATE else ""
        named = names_of(found.unread, 5)
        say(f"  {len(found.unread):,} of the responses without a readable answer: {named}{hint}", "yellow")
    if found.failures:
        again = "; the same command asks again where a request failed" * ("requests" in found.failures)
        say(f"  cells without an answer are empty{again}")
        raise typer.Exit(INCOMPLETE)


@app.command(epilog="Example: `tpru eval compare outputs/eval/base outputs/eval/trained --json gain.json`")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The --out of one evaluation.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The --out of another one, on the same rows.")],
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Compare the rows that both have, although the questions differ."),
    ] = False,
    samples: Annotated[
        int, typer.Option(min=100, help="Random swaps of A and B that p is taken from.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the swaps.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers and changed rows to this file.")
    ] = None,
) -> None:
    """Tell whether B is better than A: interval and test over sources, McNemar's test, the rows that changed.

    Evaluations whose rows, prompts, pixels or sampling differ are refused.
    """
    from tpru_verl.eval import compare as work
    from tpru_verl.files import check_output, write_json
    from tpru_verl.terminal import results

    for run in (a, b):
        check_output("--json", json_file, [run / "summary.json", *run.glob("*.jsonl")])
    found = work.compare(a, b, anyway=anyway, samples=samples, seed=seed)
    console = results()
    for table in work.tables(found):
        console.print(table)
    for one in found:
        for what in one.differing:
            console.print(
                f"{one.title}: not the same: {what}", style="yellow", highlight=False, soft_wrap=True
            )
        console.print(work.verdict(one), highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, work.as_json(found))


@app.command(
    epilog="Examples:\n\n"
    "- `tpru eval export lmms-eval tasks --bench tpru-test,lego-puzzles`\n\n"
    "- `tpru eval export vlmevalkit ~/LMUData --bench tpru-test`"
)
def export(
    harness: Annotated[
        str, typer.Argument(metavar="HARNESS", help="lmms-eval or vlmevalkit. inspect-ai needs no export.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that the harness reads.")],
    bench: BenchNames = "tpru-test",
    data: Data = None,
    style: Style = "tpru",
    min_pixels: MinPixels = 16384,
    max_pixels: MaxPixels = 36864,
    patch: Patch = PATCH,
) -> None:
    """Write rows, prompts and pictures for another evaluation harness. It judges answers with our grader."""
    from tpru_verl.data.tokens.pixels import Bounds
    from tpru_verl.eval.asking import check_style
    from tpru_verl.eval.benchmarks import find
    from tpru_verl.eval.harnesses.rows import export as work
    from tpru_verl.files import check_place
    from tpru_verl.terminal import options_checked

    with options_checked():
        benchmarks = find(bench)
        sources = _sources(data, benchmarks)
        check_style(style)
        check_pixels(min_pixels, max_pixels, patch)
        check_place("FOLDER", folder, folder=True)
    chosen = [(benchmark, sources.get(benchmark.name)) for benchmark in benchmarks]
    for path in work(harness, folder, chosen, style, Bounds(min_pixels, max_pixels, 2 * patch)):
        typer.echo(path)
