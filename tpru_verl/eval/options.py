"""The options that several commands of `tpru eval` have, and the engine that they describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpru_verl.models import DEFAULT, patch_sides

if TYPE_CHECKING:
    from tpru_verl.eval.engines.base import Engine, Sampling

Model = Annotated[
    str, typer.Argument(help="Folder or Hub id of a model. With --base-url: the name on the server.")
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
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer, reasoning included.")]
AfterReasoning = Annotated[
    bool,
    typer.Option(
        "--after-reasoning", help="With guided and score: let the model reason first, up to `<answer>`."
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(help="URL of an OpenAI-compatible server. Its key is read from OPENAI_API_KEY."),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests to the server at the same time.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for one answer of the server.")]
Retries = Annotated[
    int, typer.Option(min=0, help="Repeat a failed request this many times, with growing pauses.")
]
Patch = Annotated[int, typer.Option(help=f"Side of a patch of the model on the server: {patch_sides()}.")]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Context of vLLM in tokens. Default: enough for the longest row.")
]
More = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="Argument of vLLM, such as tensor_parallel_size=2. With --base-url: field of each request.",
    ),
]
PATCH = DEFAULT.patch
SET_BY = {  # fields of a request, and the options that set them: the results name these alone
    "model": "MODEL",
    "messages": "--rows, --bench and --style",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "max_tokens": "--max-tokens",
    "max_completion_tokens": "--max-tokens",
    "n": "--n",
    "seed": "--seed",
    "stop": "--after-reasoning",
    "logprobs": "--decide",
    "top_logprobs": "--decide",
}


def check_pixels(least: int, most: int, patch: int) -> None:
    """Raises ValueError, which names the options, for bounds that hold no picture."""
    from tpru_verl.data.tokens.pixels import MAX, MIN

    defaults = [
        f"the default of {name}"
        for value, name, default in ((least, "--min-pixels", MIN), (most, "--max-pixels", MAX))
        if value == default
    ]
    if not 0 < least <= most:
        aside = f" ({' and '.join(defaults)})" if defaults else ""
        raise ValueError(
            f"--min-pixels, --max-pixels: found {least} and {most}{aside}, expected 0 < min <= max; give both"
        )
    if most < (2 * patch) ** 2:
        raise ValueError(f"--max-pixels: found {most}, expected {(2 * patch) ** 2} (one token) or more")


def check_options(option: list[str] | None) -> dict[str, object]:
    """The values of `--option`. Raises ValueError for another form than KEY=VALUE, and for our settings."""
    extra = {key: value_of(text) for key, text in pairs_of("--option", option).items()}
    if ours := next((key for key in extra if key in SET_BY), None):
        raise ValueError(
            f"--option: found {ours!r}, which `tpru eval` sets itself ({SET_BY[ours]}); leave it out"
        )
    return extra


def engine_of(
    model: str,
    sampling: Sampling,
    pixels: tuple[int, int],
    *,
    base_url: str | None,
    concurrency: int,
    timeout: float,
    retries: int,
    patch: int,
    max_model_len: int | None,
    extra: dict[str, object],
) -> Engine:
    """vLLM in this process, or the server at `base_url`. `pixels`: the least and the most of an image.

    `extra` is what `check_options` gives. Raises as `Endpoint` and `Local`.
    """
    if base_url is not None:
        from tpru_verl.data.tokens.pixels import Bounds
        from tpru_verl.eval.engines.endpoint import Endpoint

        bounds = Bounds(*pixels, 2 * patch)
        limits: dict[str, Any] = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
        return Endpoint(model, base_url, bounds, sampling, **limits, extra=extra)
    from tpru_verl.eval.engines.local import Local, begin_vllm

    least, most = pixels
    begin_vllm(model)  # before this process imports for seconds, too
    return Local(
        model, sampling, min_pixels=least, max_pixels=most, max_model_len=max_model_len, options=extra
    )


def pairs_of(name: str, texts: list[str] | None) -> dict[str, str]:
    """KEY=VALUE texts as pairs. Raises ValueError for any other form, and for a key that comes twice."""
    pairs: dict[str, str] = {}
    for text in texts or []:
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            raise ValueError(f"{name}: found {text!r}, expected the form KEY=VALUE")
        if key.strip() in pairs:
            raise ValueError(f"{name}: found {key.strip()!r} twice, expected each name once")
        pairs[key.strip()] = value.strip()
    return pairs


def value_of(text: str) -> object:
    """The JSON value that the text is, such as a number; else the text itself."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


@contextmanager
def continued(kept: Path) -> Iterator[None]:
    """Where a signal ends the block, say that the same command goes on; exit code 130, 143 or 129.

    `kept` is where the answers so far are.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:  # `cli.main` turns SIGTERM and SIGHUP into SystemExit
        code = 130 if isinstance(end, KeyboardInterrupt) else int(end.code or 0)
        by = f" by {Signals(code - 128).name}"
        with suppress(OSError):  # the terminal may be gone
            typer.echo(f"tpru: stopped{by}; the answers are in {kept}: the same command continues", err=True)
        raise typer.Exit(code) from None
