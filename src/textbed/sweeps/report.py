"""What came of a sweep: its best trials, what the groups gave, who won, and how to train the winner again.

Written to the sweep's folder (comparison.md, pictures/) and shown on a terminal. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from textbed.errors import UserError
from textbed.runs import comparison_tables, registry
from textbed.runs.comparison import compare, is_lower_better
from textbed.runs.comparison_tables import Table
from textbed.runs.folder import write_text
from textbed.runs.registry import shown
from textbed.sweeps import pictures
from textbed.sweeps.folder import Plan, SweepFolder
from textbed.sweeps.queue import FINISHED, TESTED, Queue, Row
from textbed.sweeps.space import overrides
from textbed.sweeps.worker import stages

_MOST_ROWS = 10
_MOST_GROUPS = 40
"""With more, a comparison would test hundreds of pairs, and say nothing."""


@dataclass
class Report:
    """What there is to say."""

    tables: list[Table] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        return comparison_tables.markdown(self.tables, self.lines) + "\n"


def make_report(folder: SweepFolder) -> Report:
    """Look at all trials, write comparison.md and the pictures, and say what is in them.

    It may be made at any time, of a sweep that goes on too.
    """
    report, plan = Report(), folder.plan
    there = stages(folder)
    if not there:
        raise UserError(f"{folder.path}: this sweep has not begun.")
    trials = there[0]
    rows = trials.rows()
    report.tables += _best(plan, trials, rows)
    report.tables += _failures(rows)
    if plan.search:
        _add_comparison(report, folder, there[1:], "the winner over fresh seeds")
    else:
        _add_comparison(report, folder, there, "")
    report.lines += _lines(folder, there)
    title = f"{plan.name}: {plan.objectives[0]}"
    drawn = [
        pictures.draw_importances(
            pictures.importances(trials.study), folder.pictures / "importances.png", f"{title}, importances"
        ),
        pictures.draw_slices(
            plan.space, rows, plan.objectives[0], folder.pictures / "slices.png", f"{title} by value"
        ),
    ]
    if any(drawn):
        report.lines.append(f"pictures: {folder.pictures}")
    write_text(folder.comparison_file, report.markdown())
    return report


def _best(plan: Plan, trials: Queue, rows: Sequence[Row]) -> list[Table]:
    """The best trials; of several objectives first those that no other is better than in all."""
    done = [row for row in rows if row.values and row.same_as is None]
    if not done:
        return []
    sign = 1 if is_lower_better(plan.objectives[0]) else -1
    several = len(plan.objectives) > 1
    front = {trial.number for trial in trials.study.best_trials} if several else set()
    best = sorted(done, key=lambda row: (row.number not in front, sign * row.values[0]))[:_MOST_ROWS]
    header = ["trial", "", *plan.objectives, *(["front"] if several else [])]
    lines = [
        [
            str(row.number),
            row.name,
            *map(shown, row.values),
            *(["yes" if row.number in front else ""] if several else []),
        ]
        for row in best
    ]
    what = (
        f"the best {len(best)} of {len(done)} trials" if len(best) < len(done) else "trials, the best first"
    )
    return [Table(what, header, lines, names=2)]


def _failures(rows: Sequence[Row]) -> list[Table]:
    failed = [row for row in rows if row.failed]
    if not failed:
        return []
    lines = [[str(row.number), row.name, row.status, row.error or ""] for row in failed[:_MOST_ROWS]]
    more = f", the first {_MOST_ROWS}" if len(failed) > _MOST_ROWS else ""
    return [Table(f"{len(failed)} failed{more}", ["trial", "", "what", "why"], lines, names=4)]


def _add_comparison(report: Report, folder: SweepFolder, there: Sequence[Queue], title: str) -> None:
    done = [(stage, row) for stage in there for row in stage.rows() if row.status == FINISHED]
    links = [folder.link(stage.name, row.number) for stage, row in done if row.same_as is None]
    links = [link for link in links if link.exists()]
    if len(links) < 2:
        return
    plan = folder.plan
    groups = {tuple(one for one in row.point.items() if one[0] not in registry.REPEATS) for _, row in done}
    if len(groups) > _MOST_GROUPS:
        report.lines.append(f"{len(groups)} groups are too many to compare; see scripts/compare.py --by")
        return
    runs = registry.find(links).runs
    tested = bool(runs) and all(TESTED in run.metrics for run in runs)
    try:
        found = compare(links, None, [TESTED if tested else plan.objectives[0]])
    except UserError as error:
        report.lines.append(f"no comparison: {error}")
        return
    tables = comparison_tables.tables(found)
    if title:
        tables[0] = dataclasses.replace(tables[0], title=f"{title}: {tables[0].title}")
    report.tables += tables
    report.lines += comparison_tables.lines(found)


def _lines(folder: SweepFolder, there: Sequence[Queue]) -> list[str]:
    plan, rows = folder.plan, there[0].rows()
    counts = Counter(row.status for row in rows)
    lines = [f"{len(rows)} trials: " + ", ".join(f"{count} {what}" for what, count in counts.items())]
    elsewhere = Counter(
        row.host
        for stage in there
        for row in stage.rows()
        if row.status == FINISHED and row.same_as is None and not folder.link(stage.name, row.number).exists()
    )
    if elsewhere:
        where = ", ".join(f"{count} on {host}" for host, count in sorted(elsewhere.items()))
        lines.append(f"run folders that are not here, and not in the comparison: {where}")
    best = there[0].best(rows)
    if best is None:
        return lines
    over = f", the mean over {best.runs} runs" if best.runs > 1 else ""
    lines.append(f"best: {best.name}: {plan.objectives[0]} {shown(best.value)}{over}")
    if len(there) > 1:
        lines += _tested(there[1])
    lines.append(f"train it again: {command_of(folder, best.point)}")
    return lines


def _tested(refitted: Queue) -> list[str]:
    values = [row.tested for row in refitted.rows() if row.tested is not None]
    if not values:
        return []
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    seeds = "a fresh seed" if len(values) == 1 else f"{len(values)} fresh seeds"
    return [f"tested over {seeds}: {TESTED} {statistics.fmean(values):.4f}{spread}"]


def command_of(folder: SweepFolder, point: dict[str, str]) -> str:
    """A trial's plain command line, without device, and with the test that a search leaves out."""
    plan = folder.plan
    script = plan.program[1:]
    if script and Path(script[0]).is_relative_to(plan.cwd):
        script = [os.path.relpath(script[0], plan.cwd), *script[1:]]
    return shlex.join(["python", *script, *plan.fixed, *overrides(point)])
