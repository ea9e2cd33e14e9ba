"""Prompt templates: each says what `tpru_verl.grading` accepts, and a test holds them to it.

`tpru` is the default; `paper` instructs as the published prompt does; `bare` is the problem unchanged.
"""

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template, TemplateError

TEMPLATES = ("tpru", "paper", "bare")


@lru_cache(maxsize=8)
def _load(template: str) -> Template:
    own = template in TEMPLATES
    path = Path(__file__).with_name(f"{template}.jinja") if own else Path(template).expanduser()
    if path.suffix != ".jinja" or not path.is_file():
        raise FileNotFoundError(
            f"prompt_template: found {template!r}, expected {', '.join(TEMPLATES)} or a .jinja file"
        )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (TemplateError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt_template: {path}: {error}") from error


def render(problem: str, task: str | None, template: str = "tpru") -> str:
    """The prompt for `problem`: `content` to the template, beside `task`, a `Task` value ("" for None).

    Raises FileNotFoundError for an unknown template, ValueError for one that does not render or that
    loses or adds `<image>` tags: each stands for one image.
    """
    value = "" if task is None else str(getattr(task, "value", task))
    try:
        prompt = _load(template).render(content=problem, task=value)
    except TemplateError as error:
        raise ValueError(f"prompt_template: {template}: {error}") from error
    found, expected = prompt.count("<image>"), problem.count("<image>")
    if found != expected:
        raise ValueError(
            f"prompt_template: {template}: found {found} <image> tags in the prompt, expected {expected}; "
            "use {{ content }} exactly once and write no tag of your own"
        )
    return prompt
