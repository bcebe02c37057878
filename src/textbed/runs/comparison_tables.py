"""A comparison as tables: in the terminal, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from rich.markup import escape

from textbed.errors import UserError
from textbed.runs.answers import Disagreement, disagreements, read_texts
from textbed.runs.comparison import (
    BYTES,
    PARAMETERS,
    SECONDS,
    Comparison,
    Group,
    Pair,
    answers_of,
    split_of,
)
from textbed.runs.folder import plain
from textbed.runs.summary import console, duration, text_table

NONE = "–"
_SHARES = ("accuracy", "f1_macro", "f1_weighted", "precision", "recall", "f1")
_SHOWN = 110  # characters of a text


@dataclass(frozen=True)
class Table:
    """Strings in rows and columns. The columns before ``names`` are of names, the others of numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int = 1
    keys: list[list[Any]] = field(default_factory=list)
    """What each cell is sorted by: its number, None where there is none, text in columns of names."""


def tables(comparison: Comparison) -> list[Table]:
    """What each group gave, and the tests of the differences."""
    found = [_figures(comparison)]
    if comparison.pairs:
        found.append(_tests(comparison))
    return found


def lines(comparison: Comparison) -> list[str]:
    """What is to be said beside the tables: warnings first."""
    said = [f"warning: {line}" for line in comparison.warnings]
    if comparison.equal:
        said.append(f"equal in all: {', '.join(f'{name} {value}' for name, value in comparison.equal)}")
    return said + comparison.notes


def is_share(metric: str) -> bool:
    """Whether a figure is shown in percent."""
    return metric.count("/") > 0 and metric.split("/")[1] in _SHARES


def title_of(metric: str) -> str:
    """A figure and its unit."""
    return f"{metric}, %" if is_share(metric) else metric


def number_of(metric: str) -> Callable[[float], str]:
    """What writes a value of a figure."""

    def shown(value: float) -> str:
        if is_share(metric):
            text = f"{100 * value:.2f}"
        else:
            text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        return text.replace("-", "−")

    return shown


def with_sign(number: Callable[[float], str], value: float) -> str:
    """A difference: 0 has no sign."""
    shown = number(abs(value))
    sign = "" if not any(digit in "123456789" for digit in shown) else "+" if value > 0 else "−"
    return sign + shown


def _span(number: Callable[[float], str], bounds: tuple[float, float] | None, signed: bool = False) -> str:
    if bounds is None:
        return NONE
    return " … ".join(with_sign(number, value) if signed else number(value) for value in bounds)


def _figures(comparison: Comparison) -> Table:
    metric, *more = comparison.metrics
    header = [*(comparison.by or ["group"]), "runs", title_of(metric), "sd", "95 % of the mean", "best"]
    header += [f"{title_of(name)} ± sd" for name in more] + ["training", "MiB", "parameters"]
    number = number_of(metric)
    rows: list[list[Cell]] = []
    for group in comparison.groups:
        one = group.figures[metric]
        row: list[Cell] = [(value, value) for value in group.values]
        row += [
            (str(one.count), one.count),
            (number(one.mean), one.mean),
            _cell(one.spread, number),
            (_span(number, one.interval), one.interval and one.interval[0]),
            (number(one.best), one.best),
        ]
        for name in more:
            other = group.figures[name]
            spread = "" if other.spread is None else f" ± {number_of(name)(other.spread)}"
            row.append((number_of(name)(other.mean) + spread, other.mean))
        kinds: tuple[tuple[str, Callable[[float], str]], ...] = (
            (SECONDS, duration),
            (BYTES, lambda size: f"{size / 2**20:,.0f}"),
            (PARAMETERS, lambda count: f"{count:,.0f}"),
        )
        row += [
            _cell(group.figures[name].mean if name in group.figures else None, shown) for name, shown in kinds
        ]
        rows.append(row)
    title = f"{title_of(metric)}, {'less' if comparison.lower else 'more'} is better; means over runs"
    return _table(title, header, rows, max(1, len(comparison.by)))


Cell = tuple[str, Any]
"""What is shown, and what it is sorted by."""


def _cell(value: float | None, shown: Callable[[Any], str]) -> Cell:
    return (NONE if value is None else shown(value)), value


def _table(title: str, header: list[str], rows: Sequence[Sequence[Cell]], names: int = 1) -> Table:
    texts, keys = ([[cell[part] for cell in row] for row in rows] for part in (0, 1))
    return Table(title, header, texts, names, keys)


def _tests(comparison: Comparison) -> Table:
    pairs = comparison.shown_pairs
    many = len(comparison.pairs) > 1
    documents = any(pair.documents for pair in pairs)
    single = any(pair.documents and pair.documents.mcnemar is not None for pair in pairs)
    number = number_of(comparison.metrics[0])
    header = ["difference of", "", "95 %", "pairs", "p, runs", *(["Holm"] if many else [])]
    header += ["d", "runs needed"]
    if documents:
        header += ["documents", "95 %, documents", "p, documents", *(["Holm"] if many else [])]
    if single:
        header += ["right alone", "McNemar"]
    rows: list[list[Cell]] = []
    for pair in pairs:
        one, two = pair.repeats, pair.documents
        name = f"{pair.first} − {pair.second}"
        row: list[Cell] = [(name, name), (with_sign(number, one.difference), one.difference)]
        row += [
            (_span(number, one.interval, signed=True), one.interval and one.interval[0]),
            _cell(one.repeats if one.paired else None, str),
            (p_value(one.p), one.p),
            *([(p_value(pair.holm), pair.holm)] if many else []),
            _cell(one.effect, lambda effect: f"{effect:.2f}".replace("-", "−")),
            _cell(one.needed, str),
        ]
        if documents:
            row += (
                [(NONE, None)] * (3 + many)
                if two is None
                else [
                    (f"{two.documents:,}", two.documents),
                    (_span(number, two.interval, signed=True), two.interval[0]),
                    (p_value(two.p), two.p),
                    *([(p_value(pair.holm_documents), pair.holm_documents)] if many else []),
                ]
            )
        if single:
            row += (
                [(NONE, None)] * 2
                if two is None or two.mcnemar is None
                else [
                    (f"{two.only_first} : {two.only_second}", two.only_first),
                    (p_value(two.mcnemar), two.mcnemar),
                ]
            )
        rows.append(row)
    left = len(comparison.pairs) - len(pairs)
    title = "Differences" + (f"; {left} more pairs are counted in Holm's correction" if left else "")
    return _table(title, header, rows)


def p_value(p: float | None) -> str:
    """0.062, 0.0031, < 0.0005."""
    if p is None:
        return NONE
    return "< 0.0005" if p < 0.0005 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def of_disagreements(
    comparison: Comparison, most: int, between: tuple[str, str] | None = None
) -> tuple[Table, list[Disagreement]]:
    """The documents on which two groups differ most, with their texts where these can be read.

    Args:
        between: names of two groups; None takes the first two, or the best and the one tested against.

    Raises:
        UserError: the groups have no predictions on the same documents.
    """
    if between is None:
        if not comparison.pairs:
            raise UserError("--disagreements: there is one group of runs; it takes two to disagree.")
        between = comparison.pairs[0].first, comparison.pairs[0].second
    first, second = (comparison.group(name) for name in between)
    try:
        found = disagreements(*answers_of(comparison, first, second), most)
    except UserError as error:
        raise UserError(f"--disagreements: {error}.") from None
    found, untold = with_texts(comparison, first, found)
    title = f"Documents on which {first.name} and {second.name} differ most"
    title += "".join(f" (no texts: {reason})" for reason in untold)
    rows = [
        [
            one.label,
            _clip(one.text),
            str(one.row),
            f"{one.first:.0%}",
            f"{one.second:.0%}",
        ]
        for one in found
    ]
    header = ["class", "text", "row", f"{first.name} right", f"{second.name} right"]
    return Table(title, header, rows, names=2), found


def with_texts(
    comparison: Comparison, group: Group, found: Sequence[Disagreement]
) -> tuple[list[Disagreement], list[str]]:
    """Documents with their texts as ``group`` read them, and why some cannot be read, for each data set."""
    told, reasons = list(found), []
    for place in sorted({one.place for one in found}):
        here = [i for i, one in enumerate(found) if one.place == place]
        data_set = comparison.data_sets[place]
        run = next(run for unit, run in group.runs.items() if comparison.documents_of(unit) == data_set)
        try:
            texts = read_texts(
                run.folder, split_of(comparison), [found[i].row for i in here], [found[i].label for i in here]
            )
        except UserError as error:
            reasons.append(str(error))
            continue
        for i, text in zip(here, texts, strict=True):
            told[i] = dataclasses.replace(found[i], text=text)
    return told, reasons


def _clip(text: str | None) -> str:
    if text is None:
        return NONE
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


# Formats


def show(found: Sequence[Table], said: Sequence[str], file: IO[str] | None = None) -> None:
    """Print on a terminal, standard output by default."""
    out = console(file or sys.stdout)
    if not out.is_terminal:
        out.width = 240
    for one in found:
        table = text_table(one.title, *one.header)
        for column in table.columns[1 : one.names]:
            column.justify = "left"
        for row in one.rows:
            table.add_row(*map(escape, row))
        out.print(table)
    for line in said:
        out.print(line, markup=False, soft_wrap=True)


def text(found: Sequence[Table], said: Sequence[str]) -> str:
    """As :func:`show` prints it."""
    out = io.StringIO()
    show(found, said, out)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def markdown(found: Sequence[Table], said: Sequence[str]) -> str:
    """Tables of GitHub's Markdown."""

    def cells(row: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    parts = []
    for one in found:
        rule = ["---"] * one.names + ["--:"] * (len(one.header) - one.names)
        parts += [f"{one.title}:", "", cells(one.header), f"|{'|'.join(rule)}|", *map(cells, one.rows), ""]
    return "\n".join([*parts, *(f"- {line}" for line in said)])


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--",
    "…": r"\ldots{}", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


def latex(found: Sequence[Table], said: Sequence[str]) -> str:
    """Tables for the package booktabs; what is to be said beside them as comments."""

    def escaped(cell: str) -> str:
        return re.sub(r"[\\&%$#_{}~^±−–…<>|]", lambda special: _SPECIAL[special[0]], cell)

    def cells(row: Sequence[str]) -> str:
        return " & ".join(map(escaped, row)) + r" \\"

    parts = []
    for one in found:
        columns = "l" * one.names + "r" * (len(one.header) - one.names)
        parts += [
            f"% {one.title}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            cells(one.header),
            r"\midrule",
            *map(cells, one.rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    return "\n".join([*parts, *(f"% {line}" for line in said)])


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """A record for each group in plain numbers, with its difference from the first, or from ``against``."""
    metric = comparison.metrics[0]
    reference = comparison.against or comparison.groups[0].name
    found = []
    for group in comparison.groups:
        one = group.figures[metric]
        low, high = one.interval or (None, None)
        record: dict[str, Any] = dict(zip(comparison.by or ["group"], group.values, strict=True))
        record |= {"count": one.count, "mean": one.mean, "sd": one.spread, "low": low, "high": high}
        record["best"] = one.best
        for name in (*comparison.metrics[1:], SECONDS, BYTES, PARAMETERS):
            record[name] = group.figures[name].mean if name in group.figures else None
        sign, pair = _pair_of(comparison, group.name, reference)
        record["compared_with"] = reference if pair else None
        record |= _test_record(sign, pair)
        found.append(record)
    return found


def _pair_of(comparison: Comparison, name: str, reference: str) -> tuple[int, Pair | None]:
    for pair in comparison.pairs:
        if (pair.first, pair.second) == (name, reference):
            return 1, pair
        if (pair.first, pair.second) == (reference, name):
            return -1, pair
    return 1, None


def _test_record(sign: int, pair: Pair | None) -> dict[str, Any]:
    def turned(bounds: tuple[float, float] | None) -> tuple[float | None, float | None]:
        return (None, None) if bounds is None else bounds if sign > 0 else (-bounds[1], -bounds[0])

    one = pair.repeats if pair else None
    two = pair.documents if pair else None
    low, high = turned(one.interval if one else None)
    low_documents, high_documents = turned(two.interval if two else None)
    return {
        "difference": sign * one.difference if one else None,
        "difference_low": low,
        "difference_high": high,
        "pairs": one.repeats if one and one.paired else None,
        "p_runs": one.p if one else None,
        "p_runs_holm": pair.holm if pair else None,
        "effect": sign * one.effect if one and one.effect is not None else None,
        "runs_needed": one.needed if one else None,
        "documents": two.documents if two else None,
        "documents_low": low_documents,
        "documents_high": high_documents,
        "p_documents": two.p if two else None,
        "p_documents_holm": pair.holm_documents if pair else None,
        "p_mcnemar": two.mcnemar if two else None,
    }


def as_csv(comparison: Comparison) -> str:
    """:func:`records` as CSV."""
    out = io.StringIO()
    rows = records(comparison)
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def everything(comparison: Comparison) -> dict[str, Any]:
    """All that was found in plain values, all pairs and the folders of the runs too."""
    return {
        "metrics": comparison.metrics,
        "lower_is_better": comparison.lower,
        "by": comparison.by,
        "groups": [
            {
                "name": group.name,
                "values": list(group.values),
                "runs": [str(run.path) for run in group.runs.values()],
                "figures": {name: dataclasses.asdict(one) for name, one in group.figures.items()},
            }
            for group in comparison.groups
        ],
        "pairs": [dataclasses.asdict(pair) for pair in comparison.pairs],
        "equal": dict(comparison.equal),
        "warnings": comparison.warnings,
        "notes": comparison.notes,
    }


def as_json(comparison: Comparison, disagreeing: Sequence[Disagreement] = ()) -> str:
    """:func:`everything` as JSON, with documents that two groups differ on."""
    content = everything(comparison)
    if disagreeing:
        content["disagreements"] = [dataclasses.asdict(one) for one in disagreeing]
    return json.dumps(plain(content), indent=2, ensure_ascii=False)
