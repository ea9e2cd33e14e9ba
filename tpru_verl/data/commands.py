"""`tpru data ...`: one command a question that a user has about rows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpru_verl.files import check_output, write_json
from tpru_verl.models import DEFAULT, patch_sides

if TYPE_CHECKING:
    from tpru_verl.data.source.forms import Keys, Source


class AnswerKind(str, Enum):
    letters = "letters"
    orders = "orders"
    ranks = "ranks"


class Framework(str, Enum):
    verl = "verl"
    trl = "trl"
    ms_swift = "ms-swift"


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check, show, audit and prepare rows: files (parquet, json, jsonl, csv, tsv), folders, the Hub.",
    epilog="Use the commands in this order: `validate`, `stats`, `view`, `audit`, `prepare`.",
)

SourceName = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A file, a folder (or one split of it: FOLDER@SPLIT) or a data set of the Hub (ORG/NAME@SPLIT).",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a data set of the Hub.")]
ProblemKey = Annotated[str | None, typer.Option(help="Column with the question. Default: found by its name.")]
AnswerKey = Annotated[str | None, typer.Option(help="Column with the answer. Default: found by its name.")]
ImageKey = Annotated[
    str | None,
    typer.Option(help="Column with the images, or several: FIRST,SECOND,... Default: found by its name."),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the pictures that a table names. There, a picture may lie in a folder that has the "
        "row's id."
    ),
]
Answers = Annotated[
    AnswerKind | None,
    typer.Option(
        help="What an answer such as [3, 1, 4, 2] means: `orders` show picture 3 first, `ranks` put picture "
        "1 in the third place. `letters` name an option. Needed where a table allows both readings."
    ),
]
Against = Annotated[
    str | None, typer.Option(help="Test rows: another source that must share no pictures with this one.")
]
MinPixels = Annotated[
    int | None, typer.Option(help="Fewest pixels of an image. Default: as in the recipes of such models.")
]
MaxPixels = Annotated[
    int | None, typer.Option(help="Most pixels of an image. Default: as in the recipes of such models.")
]
Deep = Annotated[
    bool, typer.Option("--deep", help="Decode every image in full. Default: read the headers of images only.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one for each core.")]


def keys_of(
    problem: str | None,
    answer: str | None,
    image: str | None,
    image_root: Path | None,
    answers: AnswerKind | None,
    *,
    answered: bool = True,
) -> Keys:
    """What a command's options say of its rows. Raises FileNotFoundError for an `image_root` that is none."""
    from tpru_verl.data.source.forms import Keys

    if image_root is not None and not image_root.is_dir():
        raise FileNotFoundError(f"--image-root: found no folder {image_root}")
    return Keys(problem, answer, image, image_root, answers.value if answers else None, answered)


def open_source(
    name: str,
    revision: str | None = None,
    problem: str | None = None,
    answer: str | None = None,
    image: str | None = None,
    image_root: Path | None = None,
    answers: AnswerKind | None = None,
    *,
    answered: bool = True,
) -> Source:
    """The source that a command's arguments describe; what it is read as is printed.

    `answered` is False where rows without an answer do. Raises as `Source.open`.
    """
    from tpru_verl.data.source.forms import Source
    from tpru_verl.terminal import messages

    keys = keys_of(problem, answer, image, image_root, answers, answered=answered)
    source = Source.open(name, revision=revision, keys=keys)
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
    report: Annotated[Path | None, typer.Option(help="Write all findings to this JSON file.")] = None,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    workers: Workers = None,
) -> None:
    """Check every row. The exit code is 1 when a row cannot be used.

    A row cannot be used when its image tags and images differ in number, an image is broken or unfit, the
    answer is no option, two options are equal, or its task has an unknown name. Repeated rows are warnings.
    Nothing is changed.
    """
    from tpru_verl.data import validate as work
    from tpru_verl.data.source.parts import files_of
    from tpru_verl.terminal import counted, results

    check_output("--report", report, files_of(source, against))
    opened = open_source(source, revision, problem_key, answer_key, image_key, image_root, answers)
    found = work.validate(
        opened, deep=deep, against=open_source(against, answered=False) if against else None, workers=workers
    )
    if report is not None:
        found.write(report)
    console = results()
    for table in work.tables(found):
        console.print(table)
    if found.unusable:
        raise ValueError(work.summary_of(found))
    console.print(f"{counted(found.rows, 'row')}, all usable, {counted(len(found.findings), 'warning')}")


@app.command(epilog="Example: `tpru data prepare Stephengzk/TPRU-25k prepared --split train=0.98,test=0.02`")
def prepare(
    source: SourceName,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Folder to write. An earlier result in it is replaced, other files never."
        ),
    ],
    drop_invalid: Annotated[
        bool,
        typer.Option(
            "--drop-invalid", help="Leave out rows that cannot be used, and list them in dropped.json."
        ),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SHARE,...",
            help="Write several splits. Rows of one source, or with a picture in common, stay together.",
        ),
    ] = None,
    allow: Annotated[
        bool,
        typer.Option("--allow", help="Allow a split that is empty, or of one scene where there are several."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    template: Annotated[str, typer.Option(help="Prompt template for the column `prompt`.")] = "tpru",
    framework: Annotated[
        Framework, typer.Option("--for", help="What reads the rows. `verl` is for veRL and EasyR1.")
    ] = Framework.verl,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a model. Stores the number of tokens of each prompt."),
    ] = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    against: Against = None,
    deep: Deep = False,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    workers: Workers = None,
) -> None:
    """Write rows to shards that a trainer reads without conversion, with a manifest and a data set card.

    Images keep their bytes. The same source and options give the same bytes.
    """
    from tpru_verl.data.layout import DROPPED
    from tpru_verl.data.prepare import PrepareOptions
    from tpru_verl.data.prepare import prepare as work
    from tpru_verl.data.splits import rows_table, view_commands
    from tpru_verl.data.tokens.recipes import counter_of
    from tpru_verl.terminal import counted, results

    options = PrepareOptions(seed, template, shares_of(split), drop_invalid, deep, allow, framework.value)
    opened = open_source(source, revision, problem_key, answer_key, image_key, image_root, answers)
    counter = counter_of(model, template, min_pixels, max_pixels)[0] if model else None
    other = open_source(against, answered=False) if against else None
    manifest = work(opened, out, options, against=other, counter=counter, workers=workers)
    rows = manifest["rows"]
    results().print(
        rows_table({**rows, **rows["by_split"]}, f"{counted(rows['written'], 'row')} of {source}")
    )
    left_out = f", {rows['dropped']} left out and listed in {out / DROPPED}" if rows["dropped"] else ""
    typer.echo(f"{out}: {rows['written']} of {rows['read']} rows written{left_out}; look at them:")
    for line in view_commands(out, rows["splits"]):
        typer.echo(line)


def shares_of(text: str | None) -> dict[str, float] | None:
    """The shares that `--split` names. Raises OptionError for another form."""
    from tpru_verl.terminal import OptionError

    if text is None:
        return None
    try:
        named = [
            (name.strip(), float(share)) for name, share in (part.split("=") for part in text.split(","))
        ]
    except ValueError:
        raise OptionError(f"--split: found {text!r}, expected the form train=0.95,test=0.05") from None
    shares = dict(named)
    if len(shares) < len(named):
        raise OptionError(f"--split: found {text!r}, expected each name once")
    return shares


@app.command(epilog="Example: `tpru data stats Stephengzk/TPRU-25k --model Qwen/Qwen2.5-VL-7B-Instruct`")
def stats(
    source: SourceName,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model. Counts the tokens of whole prompts.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template, for --model.")] = "tpru",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    patch: Annotated[
        int | None,
        typer.Option(help=f"Side of a patch in pixels: {patch_sides()}. Default: that of --model, or 14."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this JSON file.")
    ] = None,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    workers: Workers = None,
) -> None:
    """Count tasks, scenes, images, sizes, tokens, right answers and options that say "None of the ..."."""
    from tpru_verl.data import stats as work
    from tpru_verl.data.source.parts import files_of
    from tpru_verl.data.tokens.prompts import Asked
    from tpru_verl.data.tokens.recipes import bounds_of, counter_of
    from tpru_verl.terminal import OptionError, results

    check_output("--json", json_file, files_of(source))
    keys = (problem_key, answer_key, image_key, image_root, answers)
    opened = open_source(source, revision, *keys, answered=False)
    if model and patch:
        raise OptionError(f"--patch: found {patch} beside --model, whose processor has its own; leave it out")
    if model:
        counter, bounds = counter_of(model, template, min_pixels, max_pixels)
    else:
        counter, bounds = None, bounds_of((patch or DEFAULT.patch) * DEFAULT.merge, min_pixels, max_pixels)
    console = results()
    found = work.statistics(
        opened,
        tokens=work.tokens_within(bounds),
        tokens_a_row=(lambda row: counter.count([Asked.of(row)])[0]) if counter else None,
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
    limit: Annotated[
        int, typer.Option(min=1, help="Number of rows to show. They are spread evenly over the tasks.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows.")] = 0,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    workers: Workers = None,
) -> None:
    """Write one HTML file that shows rows: images, questions, options and answers, with filters."""
    from tpru_verl.data.source.parts import files_of
    from tpru_verl.data.view import write_gallery

    check_output("--out", out, files_of(source))
    keys = (problem_key, answer_key, image_key, image_root, answers)
    opened = open_source(source, revision, *keys, answered=False)
    typer.echo(f"Look at {write_gallery(opened, out, limit=limit, seed=seed, workers=workers)}")


@app.command(epilog="Example: `tpru data audit train.parquet --json audit.json`")
def audit(
    source: SourceName,
    seed: Annotated[int, typer.Option(help="Seed of the folds, and of choices between equal scores.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this JSON file.")
    ] = None,
    revision: Revision = None,
    problem_key: ProblemKey = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    image_root: ImageRoot = None,
    answers: Answers = None,
    workers: Workers = None,
) -> None:
    """Measure how often simple rules find the right answer without understanding. No model is needed.

    The rules use letters, positions, similar images, file sizes, image formats or words alone. Each is
    compared with chance (95 % interval), and a verdict says what to change. The exit code is always 0.
    """
    from tpru_verl.data.audit import measure, report
    from tpru_verl.data.source.parts import files_of
    from tpru_verl.terminal import results

    check_output("--json", json_file, files_of(source))
    opened = open_source(source, revision, problem_key, answer_key, image_key, image_root, answers)
    found = measure.audit(opened, seed=seed, workers=workers)
    console = results()
    for table in report.tables(found):
        console.print(table)
    console.print(report.verdict(found), highlight=False)
    if json_file is not None:
        write_json(json_file, report.as_json(found))
