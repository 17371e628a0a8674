"""A table's report as a LaTeX table: plain tabular, for any document that loads amsmath."""

from __future__ import annotations

import unicodedata

from .report import PaperReport
from .words import arrow, cell_texts, heading, key, missing

# With more columns the printed values stand above ours: the table would leave the page.
_SIDE_BY_SIDE = 4

# A command for each sign.
# Signs, and the commands of maths mode that draw them.
_MATHS = (
    "α alpha, β beta, γ gamma, δ delta, ε epsilon, ζ zeta, η eta, θ theta, ι iota, κ kappa, λ lambda, μ mu, ν nu, "
    "ξ xi, π pi, ρ rho, σ sigma, τ tau, υ upsilon, φ phi, χ chi, ψ psi, ω omega, Γ Gamma, Δ Delta, Θ Theta, "
    "Λ Lambda, Ξ Xi, Π Pi, Σ Sigma, Φ Phi, Ψ Psi, Ω Omega, ± pm, × times, · cdot, … dots, → to, ← leftarrow, "
    "↓ downarrow, ↑ uparrow, ∈ in, ≤ leq, ≥ geq, ≠ neq, ≈ approx, ∞ infty, † dagger"
)
_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "_%&#{}$"},
    # In LaTeX's own font encoding these would come out as other signs.
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    **{sign: f"$\\{name}$" for sign, name in map(str.split, _MATHS.split(", "))},
    "−": "$-$",
    "–": "--",
    "—": "---",
    "’": "'",
    "²": "$^2$",
}


def latex_text(text: str) -> str:
    """Return text for LaTeX: commands escaped, signs that its fonts lack written out, unknown ones as [U+2603]."""
    return "".join(_SIGNS.get(sign) or _letter(sign) for sign in " ".join(text.split()))


def render_latex(report: PaperReport) -> str:
    """Return a table environment with caption and label, for \\input."""
    heads = [f"{column.name} {arrow(column)}" for column in report.table.columns]
    side_by_side = len(heads) <= _SIDE_BY_SIDE
    body = _side_by_side(report, heads) if side_by_side else _stacked(report, heads)
    spec = "l" + ("rr" * len(heads) if side_by_side else "l" + "r" * len(heads))
    caption = " ".join([f"{heading(report)}.", key(report), *missing(report)[:1]])
    return "\n".join(
        [
            f"% {' '.join(report.around.command.split())}, {report.around.generated_at}",
            r"\begin{table}",
            r"\centering",
            f"\\begin{{tabular}}{{{spec}}}",
            r"\hline",
            *body,
            r"\hline",
            r"\end{tabular}",
            f"\\caption{{{latex_text(caption)}}}",
            f"\\label{{tab:{report.table.name}-{report.scale}}}",
            r"\end{table}",
            "",
        ]
    )


def _side_by_side(report: PaperReport, heads: list[str]) -> list[str]:
    above = [latex_text(report.table.varied), *(f"\\multicolumn{{2}}{{c}}{{{latex_text(head)}}}" for head in heads)]
    lines = [_line(above), _line(["", *["paper", "ours"] * len(heads)]), r"\hline"]
    for row, cells in zip(report.rows, cell_texts(report), strict=True):
        lines.append(_line(_texts([row.label, *(text for cell in cells for text in cell)])))
    return lines


def _stacked(report: PaperReport, heads: list[str]) -> list[str]:
    lines = [_line(_texts([report.table.varied, "", *heads])), r"\hline"]
    for row, cells in zip(report.rows, cell_texts(report), strict=True):
        lines.append(_line(_texts([row.label, "paper", *(printed for printed, _ in cells)])))
        lines.append(_line(_texts(["", "ours", *(ours for _, ours in cells)])))
    return lines


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _letter(sign: str) -> str:
    if sign.isascii() or unicodedata.name(sign, "").startswith("LATIN "):
        return sign
    return f"[U+{ord(sign):04X}]"


def _texts(texts: list[str]) -> list[str]:
    return [latex_text(text) for text in texts]
