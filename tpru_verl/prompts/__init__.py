"""Prompt templates: each says what `tpru_verl.grading` accepts, and a test holds them to it.

`tpru` is the default; `paper` instructs as the published prompt does; `bare` is the problem unchanged. A
template of one's own is a `.jinja` file; it runs in a sandbox (`sandbox`).
"""

from functools import lru_cache
from pathlib import Path

from jinja2 import Template, TemplateSyntaxError

from tpru_verl.prompts.sandbox import MAX_TEMPLATE, compiled, rendered

__all__ = ["TEMPLATES", "check_file", "render"]

TEMPLATES = ("tpru", "paper", "bare")


@lru_cache(maxsize=8)
def _load(template: str) -> Template:
    own = template in TEMPLATES
    path = Path(__file__).with_name(f"{template}.jinja") if own else Path(template).expanduser()
    if path.suffix != ".jinja" or not path.is_file():
        raise FileNotFoundError(
            f"prompt_template: found {template!r}, expected {', '.join(TEMPLATES)} or a .jinja file"
        )
    try:
        with path.open(encoding="utf-8") as file:
            return compiled(file.read(MAX_TEMPLATE + 1))
    except Exception as error:  # a template is a program, and may fail in any way
        raise ValueError(f"prompt_template: {path}: {_line_of(error)}") from error


def check_file(key: str, path: Path) -> None:
    """Try a template that a trainer renders without a sandbox, in ours: one of others could run programs.

    Raises ValueError, which names the setting `key`, for one that does not render, and OSError.
    """
    with path.open(encoding="utf-8") as file:
        source = file.read(MAX_TEMPLATE + 1)
    try:
        rendered(compiled(source), content="<image>", task="")
    except Exception as error:  # a template is a program, and may fail in any way
        raise ValueError(f"{key}: {path}: {_line_of(error)}") from error


def render(problem: str, task: str | None, template: str = "tpru") -> str:
    """The prompt for `problem`: the template's `content`, beside `task`, a `Task` value ("" for None).

    Raises FileNotFoundError for an unknown template, ValueError (one line) for one that does not render, goes
    beyond the bounds of `sandbox`, or loses or adds `<image>` tags: each stands for one image.
    """
    value = "" if task is None else str(getattr(task, "value", task))
    loaded = _load(template)
    try:
        prompt = rendered(loaded, content=problem, task=value)
    except Exception as error:  # a template is a program, and may fail in any way
        raise ValueError(f"prompt_template: {template}: {_line_of(error)}") from error
    found, expected = prompt.count("<image>"), problem.count("<image>")
    if found != expected:
        raise ValueError(
            f"prompt_template: {template}: found {found} <image> tags in the prompt, expected {expected}; "
            "use {{ content }} exactly once and write no tag of your own"
        )
    return prompt


def _line_of(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    kind = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())
