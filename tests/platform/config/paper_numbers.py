"""The numbers that the paper prints, typed from it: the other side of tests of `experiments/`."""

from __future__ import annotations

from causalfusion_platform.config.paper_table import SCALES, Scale

_FIXED_STEPS: dict[str, tuple[float | None, ...]] = {
    "s-1": (13.78, 356.69, 404.67, 390.18),
    "s-2": (16.69, 14.77, 47.49, 136.04),
    "s-4": (24.14, 15.37, 18.13, 33.14),
    "s-8": (54.08, 24.49, 22.66, 20.01),
    "s-256": (313.28, 321.62, 261.26, 192.25),
}

PRINTED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "table1": {
        "dit": (18.24,),
        "in-context": (26.71,),
        "new-recipe": (21.94,),
        "t-embedding": (20.68,),
        "qk-norm": (18.66,),
        "lr-warmup": (17.11,),
        "all": (13.78,),
    },
    "table2": _FIXED_STEPS | {"random": (21.31, 22.17, 23.54, 25.05)},
    "table3a": {
        "gamma-1.0": (21.31, 22.17, 23.54, 25.05),
        "gamma-0.95": (14.49, 17.78, 19.79, 23.93),
        "gamma-0.9": (12.89, 15.57, 18.83, 22.72),
        "gamma-0.85": (12.94, 15.54, 19.12, 23.46),
        "gamma-0.8": (12.78, 15.42, 19.38, 23.78),
    },
    "table3b": {
        "raster": (14.46,),
        "block-8x8": (14.76,),
        "block-4x4": (14.62,),
        "dilated": (15.54,),
        "random": (12.89,),
    },
    "table3c": {
        "lambda-1": (12.89, 15.57, 18.83),
        "lambda-1.5": (12.61, 15.49, 18.32),
        "lambda-2": (12.13, 15.15, 18.09),
        "lambda-2.5": (12.32, 15.22, 17.99),
        "lambda-3": (12.50, 15.28, 17.92),
    },
    "table4": {
        "l": (5.12, 166.1, 0.73, 0.66, 1.94, 264.4, 0.82, 0.59),
        "xl": (3.61, 180.9, 0.75, 0.66, 1.77, 282.3, 0.82, 0.61),
        "xl-512": (None, None, None, None, 1.98, 283.2, 0.83, 0.58),
    },
    "table5": {"h": (1.64,), "h-interval": (1.57,)},
    "table6a": {
        "transfusion": (8.1, 34.5),
        "causalfusion": (7.1, 47.9),
        "transfusion-paper-share": (None, None),
        "causalfusion-paper-share": (None, None),
    },
    # FID-10k, top-1 and CIDEr.
    "table6b": {
        "dit": (18.2, 83.5, 94.4),
        "causalfusion": (11.8, 84.2, 98.0),
        "causalfusion-x0": (9.3, 84.7, 103.2),
    },
    "table7": {"shared": (12.13,), "per-step": (12.27,), "times-4": (12.19,), "times-8": (12.23,)},
    "table8": {
        "tokens-4": (12.13,),
        "tokens-16": (12.04,),
        "tokens-64": (11.84,),
        "repeat-1x64": (12.29,),
        "repeat-4x16": (11.75,),
    },
    # No numbers of its own: S_eval = S_train in Table 2, and S_eval = 1 for random S_train.
    "figure4": {
        "s-1": (13.78,),
        "s-2": (14.77,),
        "s-4": (18.13,),
        "s-8": (20.01,),
        "s-256": (None,),
        "random": (21.31,),
    },
    "figure5": {"causalfusion": (None,)},
}
"""Values of the columns that the paper has. It prints nothing in the other columns of a table, which are ours."""

ON_DIGITS = ("table6a", "table6b", "figure5")
"""Tables with captions and fine-tunes, whose smallest models are of scikit-learn's digits. All have larger ones."""

PAPER_ONLY = {("table4", "xl-512")}
"""Rows without a twin at a smaller scale."""

SMALL_ONLY = {("table6a", "transfusion-paper-share"), ("table6a", "causalfusion-paper-share")}
"""Rows that are ours: at paper scale every row has the paper's share."""


def small_scales(table: str) -> tuple[Scale, ...]:
    """Return the scales of a table for two CPU cores, the smallest first."""
    return ("digits", "mnist") if table in ON_DIGITS else ("mnist",)


def scales_of(table: str, row: str) -> tuple[Scale, ...]:
    """Return the scales that have a row."""
    small = () if (table, row) in PAPER_ONLY else small_scales(table)
    return tuple(
        scale for scale in SCALES if scale in small or (scale == "paper" and (table, row) not in SMALL_ONLY)
    )
