"""What an audit found, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from tpru_verl.data.audit.measure import ALPHA, Audit, RuleResult
from tpru_verl.data.audit.rules import Rule
from tpru_verl.data.audit.second import WRONG_NONE
from tpru_verl.terminal import counted, percent

LISTED = 3  # rules of one family in the verdict; the tables have all


# Family -> what to do about a rule whose name contains a text; the first one that fits, "" fits any.
CURES: dict[str, dict[str, str]] = {
    "letters": {"": "shuffle the options until every letter is right equally often"},
    "none": {"": "make None right as often as any other option"},
    "candidates": {
        "given frame": "draw wrong candidates that are as near to the given frames as the right one is",
        "": "draw wrong candidates that are as near to each other as to the right one",
    },
    "files": {
        "encoding": "write all images of a row with the same program, format and quality",
        "(size)": "give all images of a row the same width and height",
        "file first": "mix scenes whose images need more bytes over time with scenes whose images need fewer",
        "": "draw wrong images whose files are as large as that of the right one",
    },
    "text": {
        "longest": "make right and wrong options equally long",
        "": "use the same words whatever the answer is",
    },
    "orders": {
        "most frequent": "draw the right order uniformly",
        "as shown": "show the frames in a random order",
        "": "draw the wrong orders independently of the right one",
    },
    "frames": {"": "choose frames from places that look alike"},
    "brightness": {"": "mix scenes that get brighter with scenes that get darker"},
}
REVERSE = "list the reverse of the right order among the options"
ALL_LIST_IT = 0.99  # share of rows from which the advice REVERSE has been followed


def verdict(audit: Audit) -> str:
    """The rules that beat chance, rows without one right answer, and what to change, in words."""
    return "\n".join(filter(None, [_of_shortcuts(audit), _of_answers(audit)]))


def _of_answers(audit: Audit) -> str:
    """The rows with a second right answer or a wrong None; "" where there are none."""
    if not audit.doubtful:
        return ""
    reasons: dict[str, list[str]] = {}
    for row_id, reason in audit.doubtful:
        reasons.setdefault(reason, []).append(row_id)
    lines = [f"{len(audit.doubtful):,} of {audit.compared:,} rows may not have exactly one right answer:"]
    for reason, ids in reasons.items():
        more = f" and {len(ids) - LISTED:,} more" if len(ids) > LISTED else ""
        lines.append(f"- {len(ids):,}: {reason} ({', '.join(ids[:LISTED])}{more})")
    known = " A None row is right if its text is of other pictures on purpose." * (WRONG_NONE in reasons)
    return "\n".join(
        [*lines, f"Cure: look at these rows, and leave out the wrong ones; --json lists all.{known}"]
    )


def _of_shortcuts(audit: Audit) -> str:
    shortcuts = audit.shortcuts
    if not shortcuts:
        return f"No shortcut beats chance{_left_out(audit)}.{_blind_spot(audit)}"
    count = f"{len(shortcuts)} shortcuts beat" if len(shortcuts) > 1 else "1 shortcut beats"
    by_family: dict[str, list[RuleResult]] = {}
    for line in shortcuts:
        by_family.setdefault(line.rule.family, []).append(line)
    parts = [f"{count} chance{_left_out(audit)}:"]
    for family, lines in by_family.items():
        listed = [_words_for(line, several=len(audit.tasks) > 1) for line in lines[:LISTED]]
        if more := len(lines[LISTED:]):
            listed.append(f"and {more} more")
        parts.append(f"- {'; '.join(listed)}. Cure: {'; '.join(_cures(audit, family, lines))}.")
    return "\n".join(parts)


def _cures(audit: Audit, family: str, results: Sequence[RuleResult]) -> list[str]:
    """What to change in the rows so that these rules fail, without advice that they follow already."""
    by_name = CURES[family].items()
    found = [next(cure for part, cure in by_name if part in result.rule.name) for result in results]
    if family == "frames" and audit.reverse_listed < ALL_LIST_IT:
        found.insert(0, REVERSE)
    return [*dict.fromkeys(found)]


def _left_out(audit: Audit) -> str:
    reasons = {"unusable": len(audit.unusable), "without options": audit.without_options}
    told = " and ".join(f"{n:,} {name}" for name, n in reasons.items() if n)
    return f" ({told} of {audit.rows:,} rows left out)" if told else ""


def _words_for(line: RuleResult, *, several: bool) -> str:
    task = f" in {line.task.replace('_', ' ')}" if several and line.task else ""
    rule, accuracy, chance = line.rule.name, percent(line.accuracy), percent(line.level)
    return f"{rule}{task} ({accuracy} where chance is {chance})"


def _blind_spot(audit: Audit) -> str:
    """The lowest accuracy of a rule on most rows that the test would have found."""
    from scipy.stats import binom

    widest = max(audit.lines, key=lambda line: line.n, default=None)
    if widest is None:
        return ""
    n = max(1, round(widest.n / widest.design_effect))
    least = float(binom.isf(ALPHA / len(audit.lines), n, widest.level)) + 1
    if least > n:
        return f" {widest.n:,} rows are too few to see any."
    return f" In {widest.n:,} rows one of {percent(least / n)} or more would have been seen."


def tables(audit: Audit) -> list[Table]:
    """Priors, then the rules of each family: over all rows, and the accuracy in each task."""
    families = [family for family in CURES if any(line.rule.family == family for line in audit.lines)]
    return [_priors_table(audit), *(_rules_table(audit, family) for family in families)]


def _priors_table(audit: Audit) -> Table:
    rows = sum(audit.tasks.values())
    title = Text(f"{audit.source}: {rows:,} of {audit.rows:,} rows measured, of {audit.groups:,} sources")
    table = Table("what is right", "task", "rows", "p if all alike", title=title)
    for prior in audit.priors:
        counts = [f"{name} ({counted(count, 'row')})" for name, count in prior.counts.items()]
        more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
        p = "too few rows" if prior.p is None else f"{prior.p:.3g}"
        table.add_row(prior.name, prior.task.replace("_", " ") or "all", ", ".join(counts[:8]) + more, p)
    return table


def _rules_table(audit: Audit, family: str) -> Table:
    """Best first. `*` marks an interval above chance, `**` a rule that beats chance after correction."""
    tasks = [*audit.tasks] if len(audit.tasks) > 1 else []
    table = Table("rule", "how", "rows", title=f"Rules: {family}")
    table.add_column("right (95 %)", no_wrap=True)
    for header in ("chance", *tasks):
        table.add_column(header.replace("_", "\n"))
    table.caption = "* interval above chance; ** p < 0.05 after correction for all rules tried"
    by_rule: dict[Rule, dict[str, RuleResult]] = {}
    for line in audit.lines:
        if line.rule.family == family:
            by_rule.setdefault(line.rule, {})[line.task] = line
    widest = {rule: by_task.get("") or next(iter(by_task.values())) for rule, by_task in by_rule.items()}
    for rule in sorted(widest, key=lambda rule: widest[rule].level - widest[rule].accuracy):
        line = widest[rule]
        interval = f"{_marked(line)} ({100 * line.low:.1f} - {100 * line.high:.1f})"
        of_tasks = [_marked(by_rule[rule][task]) if task in by_rule[rule] else "" for task in tasks]
        style = "red" if any(line.beats_chance for line in by_rule[rule].values()) else None
        cells = (rule.name, rule.what, f"{line.n:,}", interval, percent(line.level), *of_tasks)
        table.add_row(*cells, style=style)
    return table


def _marked(line: RuleResult) -> str:
    return percent(line.accuracy) + ("**" if line.beats_chance else "*" if line.above else "")


def as_json(audit: Audit) -> dict[str, object]:
    """All that was measured, as plain objects for `json.dumps`."""
    return {
        "source": audit.source,
        "seed": audit.seed,
        "rows": audit.rows,
        "measured": sum(audit.tasks.values()),
        "tasks": dict(audit.tasks),
        "sources": audit.groups,
        "rows_without_options": audit.without_options,
        "reverse_listed": audit.reverse_listed,
        "compared": audit.compared,
        "doubtful": [{"row_id": row_id, "reason": reason} for row_id, reason in audit.doubtful],
        "unusable": [asdict(finding) for finding in audit.unusable],
        "verdict": verdict(audit),
        "shortcuts": [{"rule": line.rule.name, "task": line.task} for line in audit.shortcuts],
        "rules": [_json_line(line) for line in audit.lines],
        "priors": [asdict(prior) for prior in audit.priors],
    }


def _json_line(line: RuleResult) -> dict[str, object]:
    derived = {
        "accuracy": line.accuracy,
        "level": line.level,
        "above": line.above,
        "beats_chance": line.beats_chance,
    }
    return {**line.rule._asdict(), **{k: v for k, v in vars(line).items() if k != "rule"}, **derived}
