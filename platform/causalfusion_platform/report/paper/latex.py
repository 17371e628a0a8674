"""A table's report as a LaTeX table: plain tabular, for any document that loads amsmath."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from .content import side_by_side, stacked
from .report import PaperReport
from .words import heading, key, missing

# With more columns the printed values stand above ours: the table would leave the page.
_SIDE_BY_SIDE = 4

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
    few = len(report.table.columns) <= _SIDE_BY_SIDE
    grid = side_by_side(report) if few else stacked(report)
    spec = "l" + "r" * (len(grid.columns) - 1) if few else "ll" + "r" * (len(grid.columns) - 2)
    above = [f"\\multicolumn{{{span}}}{{c}}{{{latex_text(name)}}}" for name, span in grid.groups[1:]]
    heads = [_line(grid.columns)]
    if few:
        heads = [f"{' & '.join([latex_text(report.table.varied), *above])} \\\\", _line(["", *grid.columns[1:]])]
    caption = " ".join([f"{heading(report)}.", key(report), *missing(report)[:1]])
    return "\n".join(
        [
            f"% {' '.join(report.around.command.split())}, {report.around.generated_at}",
            r"\begin{table}",
            r"\centering",
            f"\\begin{{tabular}}{{{spec}}}",
            r"\hline",
            *heads,
            r"\hline",
            *(_line(row) for row in grid.rows),
            r"\hline",
            r"\end{tabular}",
            f"\\caption{{{latex_text(caption)}}}",
            f"\\label{{tab:{report.table.name}-{report.scale}}}",
            r"\end{table}",
            "",
        ]
    )


def _letter(sign: str) -> str:
    if sign.isascii() or unicodedata.name(sign, "").startswith("LATIN "):
        return sign
    return f"[U+{ord(sign):04X}]"


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(latex_text, cells))} \\\\"
