"""`tpru eval`: one command evaluates, `compare` and `export` are beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

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
    help="Evaluate a model or an endpoint on the benchmarks of the paper, and tell whether a gain is real.",
    epilog="`tpru eval MODEL --bench tpru-test,muirbench` is short for `tpru eval run MODEL ...`; all its "
    "options: `tpru eval run --help`",
)

BenchNames = Annotated[
    str,
    typer.Option(
        "--bench",
        help="Which, with commas between: tpru-test, muirbench, lego-puzzles, blink, mmstar, realworldqa, "
        "mmmu-dev, mmtbench, mmcr, mme-realworld-lite.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BENCH=SOURCE",
        help="Where the rows of a benchmark are: file, folder or Hub id, as the Hub or VLMEvalKit has them. "
        "Default: VLMEvalKit's table in $LMUData, else the Hub.",
    ),
]
Style = Annotated[
    str,
    typer.Option(
        help="Prompt: tpru (reason, then answer, as in training), direct (the answer alone), benchmark (as "
        "its authors ask), or another template of `tpru_verl.prompts`."
    ),
]
MinPixels = Annotated[int, typer.Option(help="Least pixels of an image; the default is that of the recipes.")]
MaxPixels = Annotated[int, typer.Option(help="Most pixels of an image; the default is that of the recipes.")]


@app.command(
    epilog="Examples:\n\n"
    "- `tpru eval Qwen/Qwen2.5-VL-7B-Instruct --bench tpru-test,muirbench`\n\n"
    "- `tpru eval my-model --base-url http://localhost:8000/v1 --bench tpru-test --out outputs/eval/mine`"
)
def run(
    model: Annotated[str, typer.Argument(help="Folder or Hub id; with --base-url the name that is served.")],
    bench: BenchNames = "tpru-test",
    out: Annotated[Path | None, typer.Option(help="Folder for results. Default: outputs/eval/MODEL.")] = None,
    data: Data = None,
    style: Style = "tpru",
    min_pixels: MinPixels = 16384,
    max_pixels: MaxPixels = 36864,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that is drawn from.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, reasoning included.")] = 1024,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers a row: for pass@k and majority vote.")] = 1,
    seed: Annotated[int, typer.Option(help="Of sampling, and of --limit.")] = 0,
    circular: Annotated[
        bool, typer.Option("--circular", help="Ask with each option in each place; all must be right.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows of each benchmark, drawn by the seed.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint; key in OPENAI_API_KEY.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once to an endpoint.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds for one request to an endpoint.")] = 600.0,
    retries: Annotated[
        int, typer.Option(min=0, help="Of a request to an endpoint, with growing pauses.")
    ] = 6,
    patch: Annotated[
        int, typer.Option(help=f"Side of a patch behind an endpoint: {patch_sides()}.")
    ] = DEFAULT.patch,
    max_model_len: Annotated[
        int | None, typer.Option(help="vLLM's context. Default: what the rows need.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of vLLM, such as tensor_parallel_size=2; of the endpoint's request."
        ),
    ] = None,
) -> None:
    """Ask every row, judge the answers, and write jsonl, summary.json and page.html.

    The same command again continues a run that was ended, and asks nothing twice.
    """
    from tpru_verl.eval.benchmarks import find
    from tpru_verl.eval.engines.base import Sampling
    from tpru_verl.eval.report import tables
    from tpru_verl.eval.run import EvalOptions, evaluate
    from tpru_verl.terminal import results

    benchmarks = find(bench)
    sources = _pairs("--data", data)
    if unknown := set(sources) - {benchmark.name for benchmark in benchmarks}:
        raise ValueError(f"--data: found {unknown.pop()!r}, expected one of the benchmarks of --bench")
    sampling = Sampling(max_tokens, temperature, top_p, n, seed)
    options = EvalOptions(style, circular, limit)
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
        summary = evaluate([(b, sources.get(b.name)) for b in benchmarks], engine, options, out, model)
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
    """A number, true, false or JSON where it is one, else the text."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


@app.command(epilog="Example: `tpru eval compare outputs/eval/base outputs/eval/trained --json gain.json`")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The --out of one run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The --out of another, on the same rows.")],
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Compare the rows that both have, although what was asked differs."),
    ] = False,
    samples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers and changed rows there.")
    ] = None,
) -> None:
    """Tell whether B is better than A: paired bootstrap over sources, McNemar's test, the rows that changed.

    Refuses runs whose rows, prompts, pixels or sampling differ.
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
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="lmms-eval or vlmevalkit; inspect-ai needs no export.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the host will look.")],
    bench: BenchNames = "tpru-test",
    data: Data = None,
    style: Style = "tpru",
    min_pixels: MinPixels = 16384,
    max_pixels: MaxPixels = 36864,
    patch: Annotated[int, typer.Option(help=f"Side of a patch: {patch_sides()}.")] = DEFAULT.patch,
) -> None:
    """Write the same rows, prompts and pixels for another harness, which then judges with our grader."""
    from tpru_verl.data.tokens.pixels import Bounds
    from tpru_verl.eval.benchmarks import find
    from tpru_verl.eval.harnesses.rows import export as work

    sources = _pairs("--data", data)
    chosen = [(benchmark, sources.get(benchmark.name)) for benchmark in find(bench)]
    for path in work(host, folder, chosen, style, Bounds(min_pixels, max_pixels, 2 * patch)):
        typer.echo(path)
