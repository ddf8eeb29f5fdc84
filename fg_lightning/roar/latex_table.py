r"""The methods' scores as a table for LaTeX, which needs `\usepackage{booktabs}`."""

from __future__ import annotations

from fg_lightning.roar.findings import ALPHA, verdict
from fg_lightning.roar.results import ORDER_NAMES, SUMMARY_COLUMNS, TITLES, ROARResults

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex_table(results: ROARResults) -> str:
    """A LaTeX `table` with a row for every fill and method, as a string.

    Columns: area between the method's curve and random's with its 95 % interval, p-value adjusted by Holm, total variation of the
    masks, and, with controls, the accuracy on the masks alone. An asterisk marks areas that differ from 0 by the adjusted p-value.

    Args:
        results: results of the experiment.
    """
    several = len(results.fills) > 1
    rows = [dict(zip(SUMMARY_COLUMNS, map(str, row), strict=True)) for row in results.summary_rows()]
    differs = {(score.fill, score.method): bool(verdict(score)) for score in results.scores()}
    lines: list[str] = []
    for place, row in enumerate(rows):
        if place and row["fill"] != rows[place - 1]["fill"]:
            lines.append(r"\midrule")
        cells = [
            *([escape(row["fill"])] if several else []),
            escape(row["method"]),
            "reference"
            if row["method"] == "random"
            else _area(row["area"], row["interval_95"], differs[row["fill"], row["method"]]),
            _p_value(row["p_holm"]),
            _number(row["total_variation"], 2),
            *([_number(row["masks_accuracy_mean"], 3)] if results.has_controls else []),
        ]
        lines.append(" & ".join(cells) + r" \\")
    head = [*(["Fill"] if several else []), "Method", "Area to random", "$p$ (Holm)", "Total variation"]
    head += ["Masks alone"] if results.has_controls else []
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_caption(results)}}}",
            r"\label{tab:roar}",
            rf"\begin{{tabular}}{{{'ll' if several else 'l'}{'r' * (len(head) - 1 - several)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(words: str) -> str:
    """Text of the user, such as a method's name, escaped for LaTeX."""
    return "".join(SPECIAL.get(letter, letter) for letter in words)


def _caption(results: ROARResults) -> str:
    count = len(results.networks if results.interval_over == "networks" else results.seeds)
    over = f"{count} {'explained networks' if results.interval_over == 'networks' else 'seeds of one explained network'}"
    sentences = [
        f"{TITLES[results.mode]}, {ORDER_NAMES[results.order]}; explained class: {escape(str(results.target))}.",
        "Area between each method's curve and random's, divided by the range of fractions: more than 0 is better than random.",
    ]
    if count > 1:
        sentences.append(
            rf"$\pm$: half the 95\,\% interval over {over}. $^*$: $p < {ALPHA:g}$ in a paired $t$-test, adjusted by Holm's method."
        )
    if results.has_controls:
        sentences.append("Masks alone: mean accuracy of networks that see the masks and no image.")
    return " ".join(sentences)


def _area(area: str, interval: str, differs: bool) -> str:
    if not area:
        return "--"
    half = rf" \pm {float(interval):.3f}" if interval else ""
    return f"${float(area):+.3f}{half}{'^*' if differs else ''}$"


def _p_value(p: str) -> str:
    return "--" if not p else "$<0.001$" if float(p) < 0.001 else f"{float(p):.3f}"


def _number(value: str, digits: int) -> str:
    return f"{float(value):.{digits}f}" if value else "--"
