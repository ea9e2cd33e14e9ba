"""`tpru eval`: `run` evaluates a model, `compare` compares two results, `export` serves other harnesses."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tpru_verl.eval.benchmarks import NAMES
from tpru_verl.models import DEFAULT, patch_sides

if TYPE_CHECKING:
    from tpru_verl.eval.engines.base import Engine, Sampling


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
Style = Annotated[
    str,
    typer.Option(
        help="Prompt: tpru asks for reasoning and an answer, as in training; direct asks for the answer "
        "alone; benchmark uses the words of the benchmark's authors. Also any template of "
        "`tpru_verl.prompts`, by name or path."
    ),
]
MinPixels = Annotated[int, typer.Option(help="Smaller images are enlarged to this many pixels.")]
MaxPixels = Annotated[int, typer.Option(help="Larger images are reduced to this many pixels.")]


@app.command(
    epilog="Examples:\n\n"
    "- `tpru eval Qwen/Qwen2.5-VL-7B-Instruct --bench tpru-test,muirbench`\n\n"
    "- `tpru eval outputs/merged --rows data/mine@test`\n\n"
    "- `tpru eval my-model --base-url http://localhost:8000/v1 --bench tpru-test --out outputs/eval/mine`"
)
def run(
    model: Annotated[
        str, typer.Argument(help="Folder or Hub id of a model. With --base-url: the name on the server.")
    ],
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
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, reasoning included.")
    ] = 1024,
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
    after_reasoning: Annotated[
        bool,
        typer.Option(
            "--after-reasoning", help="With guided and score: let the model reason first, up to `<answer>`."
        ),
    ] = False,
    base_url: Annotated[
        str | None,
        typer.Option(help="URL of an OpenAI-compatible server. Its key is read from OPENAI_API_KEY."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at the same time.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer of the server.")] = 600.0,
    retries: Annotated[
        int, typer.Option(min=0, help="Repeat a failed request this many times, with growing pauses.")
    ] = 6,
    patch: Annotated[
        int, typer.Option(help=f"Side of a patch of the model on the server: {patch_sides()}.")
    ] = DEFAULT.patch,
    max_model_len: Annotated[
        int | None, typer.Option(help="Context of vLLM in tokens. Default: enough for the longest row.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Argument of vLLM, such as tensor_parallel_size=2. With --base-url: field of each request.",
        ),
    ] = None,
) -> None:
    """Ask a model about every row, judge the answers, and write the results and a page.

    If a run was interrupted, the same command continues it and asks nothing twice.
    """
    from tpru_verl.eval.asking import EvalOptions
    from tpru_verl.eval.benchmarks import find
    from tpru_verl.eval.benchmarks.own import own
    from tpru_verl.eval.engines.base import Sampling
    from tpru_verl.eval.report import tables
    from tpru_verl.eval.run import evaluate
    from tpru_verl.terminal import results

    benchmarks = find(bench or "tpru-test") if bench or not rows else []
    sources = _pairs("--data", data)
    if unknown := set(sources) - {benchmark.name for benchmark in benchmarks}:
        raise ValueError(f"--data: found {unknown.pop()!r}, expected one of the benchmarks of --bench")
    chosen = [*((benchmark, sources.get(benchmark.name)) for benchmark in benchmarks), *own(rows or [])]
    sampling = Sampling(max_tokens, temperature, top_p, n, seed)
    ways = tuple(dict.fromkeys(name.strip() for name in decide.split(",") if name.strip()))
    options = EvalOptions(style, circular, limit, ways, after_reasoning)
    if n > 1 and after_reasoning:
        raise ValueError(f"--n: found {n} with --after-reasoning, expected 1")
    out = out or Path("outputs/eval") / model.strip("/").replace("/", "--")
    extra = {key: _value(text) for key, text in _pairs("--option", option).items()}
    engine: Engine
    if base_url is not None:
        from tpru_verl.data.tokens.pixels import Bounds
        from tpru_verl.eval.engines.endpoint import Endpoint

        bounds = Bounds(min_pixels, max_pixels, 2 * patch)
        engine = Endpoint(
            model,
            base_url,
            bounds,
            sampling,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            extra=extra,
        )
    else:
        engine = _local(model, sampling, min_pixels, max_pixels, max_model_len, extra)
    try:
        summary = evaluate(chosen, engine, options, out, model)
    except (KeyboardInterrupt, SystemExit) as end:  # `cli.main` turns SIGTERM and SIGHUP into SystemExit
        code = 130 if isinstance(end, KeyboardInterrupt) else int(end.code or 0)
        by = f" by {Signals(code - 128).name}"
        with suppress(OSError):  # the terminal may be gone
            typer.echo(f"tpru: stopped{by}; the answers are in {out}: the same command continues", err=True)
        raise typer.Exit(code) from None
    console = results()
    for found in tables(summary):
        console.print(found)
    console.print(f"Look at {out / 'page.html'}; all answers are in {out}", soft_wrap=True, highlight=False)


def _local(
    model: str,
    sampling: Sampling,
    min_pixels: int,
    max_pixels: int,
    max_model_len: int | None,
    options: dict[str, Any],
) -> Engine:
    from tpru_verl.eval.engines.local import Local

    return Local(
        model,
        sampling,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        max_model_len=max_model_len,
        options=options,
    )


def _pairs(name: str, texts: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            raise ValueError(f"{name}: found {text!r}, expected the form KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def _value(text: str) -> object:
    """The JSON value that the text is, such as a number; else the text itself."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


@app.command(epilog="Example: `tpru eval compare outputs/eval/base outputs/eval/trained --json gain.json`")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The --out of one evaluation.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The --out of another one, on the same rows.")],
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Compare the rows that both have, although the questions differ."),
    ] = False,
    samples: Annotated[int, typer.Option(min=100, help="Number of bootstrap samples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers and changed rows to this file.")
    ] = None,
) -> None:
    """Tell whether B is better than A: paired bootstrap over sources, McNemar's test, the rows that changed.

    Evaluations whose rows, prompts, pixels or sampling differ are refused.
    """
    from tpru_verl.eval import compare as work
    from tpru_verl.files import write_json
    from tpru_verl.terminal import results

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
    patch: Annotated[int, typer.Option(help=f"Side of a patch: {patch_sides()}.")] = DEFAULT.patch,
) -> None:
    """Write rows, prompts and pictures for another evaluation harness. It judges answers with our grader."""
    from tpru_verl.data.tokens.pixels import Bounds
    from tpru_verl.eval.benchmarks import find
    from tpru_verl.eval.harnesses.rows import export as work

    sources = _pairs("--data", data)
    chosen = [(benchmark, sources.get(benchmark.name)) for benchmark in find(bench)]
    for path in work(harness, folder, chosen, style, Bounds(min_pixels, max_pixels, 2 * patch)):
        typer.echo(path)
