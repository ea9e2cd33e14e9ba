"""Tables of a summary for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """One table for all benchmarks, and one more for each benchmark with several tasks or scenes."""
    settings = summary["settings"]
    pixels = f"{settings['min_pixels']:,} to {settings['max_pixels']:,} pixels"
    title = f"{summary['model']}: prompt {settings['style']}, {pixels}"
    pooled = _table(title)
    found = [pooled]
    for benchmark in summary["benchmarks"].values():
        _row(pooled, benchmark["title"], benchmark)
        for kind in ("tasks", "scenes"):
            if len(benchmark[kind]) > 1:
                table = _table(f"{benchmark['title']}, by {kind[:-1]}")
                for name, group in benchmark[kind].items():
                    _row(table, name.replace("_", " "), group)
                found.append(table)
    if summary.get("decisions"):
        found.append(_decisions(summary))
    pooled.caption = "95 % intervals, clustered by source; unparsed and failed rows count as wrong"
    return found


def _decisions(summary: Mapping[str, Any]) -> Table:
    """The ways to decide beside each other, on the same rows."""
    first = summary["settings"]["decide"][0]
    table = Table(title=f"Against {first}, on the same rows", title_justify="left", caption_justify="left")
    for column in ("", "rows", first, "this", "points", "95 %", "p", "gained", "lost"):
        table.add_column(column, justify="left" if not column else "right")
    for name, one in summary["decisions"].items():
        found = one["difference"]
        table.add_row(
            summary["benchmarks"][name]["title"],
            f"{found['n']:,}",
            f"{one['a']:.1%}",
            f"{one['b']:.1%}",
            f"{100 * found['mean']:+.1f}",
            f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}",
            f"{found['p']:.4f}",
            str(found["gained"]),
            str(found["lost"]),
        )
    table.caption = "95 % and p: over sources"
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in ("", "rows", "sources", "accuracy", "95 %", "unparsed", "cut off", "failed", ""):
        table.add_column(column, justify="left" if not column else "right")
    return table


def _row(table: Table, name: str, group: Mapping[str, Any]) -> None:
    more = [f"pass@{k} {share:.1%}" for k, share in group.get("pass_at", {}).items() if k != "1"]
    more += [f"majority {group['majority']:.1%}"] if "majority" in group else []
    more += [f"Brier {group['calibration']['brier']:.3f}"] if "calibration" in group else []
    more += [f"options in place {group['plain']:.1%}"] if "plain" in group else []
    table.add_row(
        name,
        f"{group['n']:,}",
        f"{group['clusters']:,}",
        f"{group['accuracy']:.1%}",
        f"{group['low']:.1%} to {group['high']:.1%}",
        f"{group['unparsed']:.1%}",
        f"{group['cut_off']:.1%}",
        str(group["failed"]),
        ", ".join(more),
    )
