"""`tpru data ...`: one command a question that a user has about rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpru_verl.files import write_json

if TYPE_CHECKING:
    from tpru_verl.data.source.forms import Source
    from tpru_verl.data.tokens.prompts import PromptCounter

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check, look at, audit and prepare rows of files (parquet, json, jsonl, tsv), folders and Hub ids.",
    epilog="In this order: `validate`, `stats`, `view`, `audit`, `prepare`.",
)

SourceName = Annotated[
    str, typer.Argument(metavar="SOURCE", help="File, folder (also FOLDER@SPLIT) or Hub id (ORG/NAME@SPLIT).")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
ProblemKey = Annotated[str | None, typer.Option(help="Column of the question, where it is not detected.")]
AnswerKey = Annotated[str | None, typer.Option(help="Column of the answer.")]
ImageKey = Annotated[str | None, typer.Option(help="Column of the images.")]
Against = Annotated[str | None, typer.Option(help="A source that must share no row: a test set.")]
Deep = Annotated[bool, typer.Option("--deep", help="Decode every image in full.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")]


def open_source(
    name: str,
    revision: str | None = None,
    problem: str | None = None,
    answer: str | None = None,
    image: str | None = None,
) -> Source:
    from tpru_verl.data.source.forms import Keys, Source
    from tpru_verl.terminal import messages

    source = Source.open(name, revision=revision, keys=Keys(problem, answer, image))
    for form in sorted({str(form) for form in source.forms}):
        messages.print(f"{name}: reading {form}", highlight=False, soft_wrap=True)
    return source


@app.command(
    epilog="Example: `tpru data validate train.parquet --against test.parquet --report findings.json`"
)
def validate(
    source: SourceName,
    deep: Deep = False,
    against: Against = None,
    report: Annotated[Path | None, typer.Option(help="JSON file with one entry a finding.")] = None,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    workers: Workers = None,
) -> None:
    """Check every row; exit code 1 when one is unusable.

    Tags against images, images by their headers (or in full), answer among options, distinct options, the
    task, duplicates, and pictures shared with another source. Nothing is changed.
    """
    from tpru_verl.data import validate as work
    from tpru_verl.terminal import results

    opened = open_source(source, revision, problem_key, answer_key, image_key)
    found = work.validate(
        opened, deep=deep, against=open_source(against) if against else None, workers=workers
    )
    if report is not None:
        found.write(report)
    console = results()
    for table in work.tables(found):
        console.print(table)
    if found.unusable:
        raise ValueError(work.summary_of(found))
    console.print(f"{found.rows} rows, all usable, {len(found.findings)} warnings")


@app.command(epilog="Example: `tpru data prepare Stephengzk/TPRU-25k prepared --split train=0.98,test=0.02`")
def prepare(
    source: SourceName,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to make; an earlier result in it is replaced.")
    ],
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave unusable rows out and list them.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(metavar="NAME=SHARE,...", help="Rows of one source stay together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    template: Annotated[str, typer.Option(help="Prompt template of the column `prompt`.")] = "tpru",
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model: store the tokens of each prompt.")
    ] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Pixel bound for the token counts.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixel bound for the token counts.")] = None,
    against: Against = None,
    deep: Deep = False,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    workers: Workers = None,
) -> None:
    """Write shards that veRL and EasyR1 read without conversion, with a manifest and a data set card.

    The bytes of images stay as they are. The same source and options give the same bytes.
    """
    from tpru_verl.data.prepare import Options
    from tpru_verl.data.prepare import prepare as work

    opened = open_source(source, revision, problem_key, answer_key, image_key)
    counter = _counter(model, template, min_pixels, max_pixels) if model else None
    options = Options(seed, template, shares_of(split), drop_invalid, deep)
    other = open_source(against) if against else None
    manifest = work(opened, out, options, against=other, counter=counter, workers=workers)
    typer.echo(json.dumps(manifest["rows"], indent=1))
    typer.echo(f"{out}: written, with manifest.json and README.md")


def shares_of(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"--split: found {text!r}, expected the form train=0.95,test=0.05") from None


def _counter(model: str, template: str, min_pixels: int | None, max_pixels: int | None) -> PromptCounter:
    try:
        from transformers import AutoProcessor
    except ImportError as error:
        raise ValueError(
            f"--model: counting tokens needs `pip install transformers torch`: {error}"
        ) from error
    from tpru_verl.data.tokens.prompts import PromptCounter

    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    processor = AutoProcessor.from_pretrained(model)
    return PromptCounter(processor, template, {key: n for key, n in bounds.items() if n is not None})


@app.command(epilog="Example: `tpru data stats Stephengzk/TPRU-25k --model Qwen/Qwen2.5-VL-7B-Instruct`")
def stats(
    source: SourceName,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model: count the tokens of whole prompts.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template, for the token counts.")] = "tpru",
    min_pixels: Annotated[int, typer.Option(help="Pixel bound of an image, for the token counts.")] = 16384,
    max_pixels: Annotated[int, typer.Option(help="Pixel bound; both as in the recipes.")] = 36864,
    patch: Annotated[int, typer.Option(help="Side of a patch: 14 (Qwen2.5-VL) or 16 (Qwen3-VL).")] = 14,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there, too.")] = None,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    workers: Workers = None,
) -> None:
    """Count tasks, scenes, images, sizes, tokens, answer letters and "None of the choices provided"."""
    from tpru_verl.data import stats as work
    from tpru_verl.data.tokens.pixels import Bounds
    from tpru_verl.data.tokens.prompts import Asked
    from tpru_verl.terminal import results

    opened = open_source(source, revision, problem_key, answer_key, image_key)
    counter = _counter(model, template, min_pixels, max_pixels) if model else None
    console = results()
    found = work.statistics(
        opened,
        tokens=work.tokens_within(Bounds(min_pixels, max_pixels, 2 * patch)),
        tokens_a_row=(lambda row, images: counter.count([Asked(str(row.problem), row.task, images)])[0])
        if counter
        else None,
        workers=workers,
    )
    for table in work.tables(found):
        console.print(table)
    if json_file is not None:
        write_json(json_file, work.as_json(found))


@app.command(epilog="Example: `tpru data view prepared@train --out rows.html --limit 500`")
def view(
    source: SourceName,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("rows.html"),
    limit: Annotated[int, typer.Option(min=1, help="Rows to show, spread over the tasks.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    workers: Workers = None,
) -> None:
    """Write a gallery: one HTML file with images, questions, options, answers, and filters."""
    from tpru_verl.data.view import write_gallery

    opened = open_source(source, revision, problem_key, answer_key, image_key)
    typer.echo(f"Look at {write_gallery(opened, out, limit=limit, seed=seed, workers=workers)}")


@app.command(epilog="Example: `tpru data audit train.parquet --json audit.json`")
def audit(
    source: SourceName,
    seed: Annotated[int, typer.Option(help="Of folds, and between equals.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there, too.")] = None,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    workers: Workers = None,
) -> None:
    """Measure the shortcuts by which rows can be solved without understanding; no model is needed.

    Letter and position priors, similarity, files, compression, text alone: each against chance with a 95 %
    interval, then a verdict. The exit code is 0 whatever the verdict.
    """
    from tpru_verl.data.audit import measure, report
    from tpru_verl.terminal import results

    opened = open_source(source, revision, problem_key, answer_key, image_key)
    found = measure.audit(opened, seed=seed, workers=workers)
    console = results()
    for table in report.tables(found):
        console.print(table)
    console.print(report.verdict(found), highlight=False)
    if json_file is not None:
        write_json(json_file, report.as_json(found))
