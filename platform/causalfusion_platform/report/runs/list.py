"""Display of runs: one run in 80 columns, and all runs as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from ...config.commands import command
from ...tracking.accounting import Account
from ...tracking.journal import Checkpointed, Event, Incident, Launched, Probed, SaveFailed, SetAside, StepReport
from ...tracking.rates import Rates
from ..numbers import clock, share, significant, size
from ..tables import facts_grid
from ..terminal import as_path
from .goodput import goodput_table
from .show import RunView

_INCIDENTS_SHOWN = 8


def run_panel(view: RunView) -> Panel:
    """Return what `causalfusion runs show` prints."""
    rows = facts_grid()
    rows.add_row("status", _status(view))
    rows.add_row("progress", _progress(view))
    if view.scores:
        rows.add_row("scores", escape(_scores(view)))
    if view.probed is not None:
        rows.add_row("probes", _probes(view.probed))
    if view.account.newest:
        rows.add_row("speed", _speed(view.account.newest, view.account))
    if view.account.training:
        rows.add_row("device", escape(_device(view.account)))
    if view.account.elapsed_seconds:
        rows.add_row("goodput", goodput_table(view.account))
    incidents = _incidents(view)
    if incidents:
        rows.add_row("incidents", escape("\n".join(incidents)))
    rows.add_row("checkpoints", escape("\n".join(_checkpoints(view))))
    rows.add_row(
        "MLflow run", escape(f"{view.mlflow_run_id or 'not recorded yet'}\n{view.tracking_uri or ''}".strip())
    )
    rows.add_row("folder", escape(as_path(view.folder)))
    if view.user is not None:
        rows.add_row("user", escape(view.user))
    rows.add_row("next", escape("\n".join(_next(view))))
    return Panel(rows, title=f"run {escape(view.name)}", title_align="left", expand=True)


def runs_table(views: Sequence[tuple[str, RunView]], width: int = 80) -> Text:
    """Return the text of `causalfusion runs list`, a line for each run, from (name, run).

    Columns at the right are left out where names are long. A name that is longer still has a line of its own.
    Runs of several users have a column with the user.
    """
    users = len({view.user for _, view in views}) > 1
    titles = list(dict.fromkeys(next(iter(view.scores), None) for _, view in views if view.scores))
    cells = [[*_COLUMNS], *(_cells(view, several=len(titles) > 1) for _, view in views)]
    if users:
        owners = ["user", *(view.user or "–" for _, view in views)]
        cells = [[row[0], owner, *row[1:]] for row, owner in zip(cells, owners, strict=True)]
    names = ["run", *(name for name, _ in views)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    count, always = len(cells[0]), _ALWAYS + users
    while count > always and _table_width(names, widths[:count]) > width:
        count -= 1
    room = max(width - _table_width([""], widths[:count]), cell_len("run"))
    first = min(max(map(cell_len, names)), room)
    lines = []
    for name, row in zip(names, cells, strict=True):
        if cell_len(name) > first:
            lines.append(name)
        status, *numbers = [
            _padded(text, size, right=index > users)
            for index, (text, size) in enumerate(zip(row[:count], widths[:count], strict=True))
        ]
        beginning = _padded(name if cell_len(name) <= first else "", first, right=False)
        lines.append("  ".join([beginning, status, *numbers]).rstrip())
    if len(titles) == 1:
        lines.append(f"score: {titles[0]}")
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


_COLUMNS = ("status", "score", "images", "of all", "images/s", "goodput", "launches", "incidents")
_ALWAYS = 3
"""Columns that are never left out."""


def _cells(view: RunView, *, several: bool) -> list[str]:
    found = view.account
    score = next(iter(view.scores.items()), None)
    shown = "–" if score is None else f"{score[0]} {significant(score[1])}" if several else significant(score[1])
    return [
        view.status,
        shown,
        f"{found.images:,}",
        share(found.images / view.total_images) if view.total_images else "–",
        f"{found.newest.images_per_second:.0f}" if found.newest else "–",
        share(found.goodput) if found.elapsed_seconds else "–",
        str(found.launches),
        str(sum(found.incidents.values())),
    ]


def _table_width(names: Sequence[str], widths: Sequence[int]) -> int:
    return max(map(cell_len, names)) + sum(2 + width for width in widths)


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _status(view: RunView) -> str:
    found = view.account
    words = [view.status]
    if found.launches > 1:
        words.append(f"{found.launches} launches")
    if found.attempts > 1:
        words.append(f"{found.attempts} attempts")
    if found.elapsed_seconds:
        words.append(f"{clock(found.elapsed_seconds)} in all")
    if found.down_seconds >= 1:
        words.append(f"{clock(found.down_seconds)} between launches")
    if view.status == "running" and found.reported:
        words.append(f"last report {clock(max(time.time() - found.reported, 0))} ago")
    return " · ".join(words)


def _progress(view: RunView) -> str:
    found, total = view.account, view.total_images
    reports = [event for event in view.events if isinstance(event, StepReport)]
    words = [
        f"{found.images:,} of {total:,} images ({share(found.images / total)})"
        if total
        else f"{found.images:,} images"
    ]
    words.append(f"step {found.step:,}")
    if reports:
        words.append(f"loss {reports[-1].loss:.4f}")
        if reports[-1].skipped_steps:
            words.append(f"updates skipped: {reports[-1].skipped_steps}")
    if view.status == "running" and total and found.newest and found.newest.images_per_second:
        words.append(f"ETA {clock((total - found.images) / found.newest.images_per_second)}")
    return " · ".join(words)


def _scores(view: RunView) -> str:
    shown = {name: value for name, value in view.scores.items() if "_stderr" not in name}
    scores = "\n".join(f"{name} {significant(value)}" for name, value in shown.items())
    return scores if view.scored_images is None else f"{scores}\nat {view.scored_images:,} images"


def _probes(probed: Probed) -> str:
    """Return the layer with the best probe, and that of the last layer."""
    best, last = max(probed.values, key=lambda name: probed.values[name]), [*probed.values][-1]
    shown = "\n".join(f"{name} {significant(probed.values[name])}" for name in dict.fromkeys((best, last)))
    return f"{shown}\nbest and last of layers 0 to {len(probed.values) - 1}, at {probed.images:,} images"


def _speed(rates: Rates, found: Account) -> str:
    workers = f" ({rates.tflops_per_worker:.3g} a worker)" if found.attempt and found.attempt.workers > 1 else ""
    first = f"{rates.images_per_second:.4g} images/s · {rates.tokens_per_second:.4g} tokens/s"
    mfu = f" · MFU {share(rates.mfu, 1)}" if rates.mfu is not None else ""
    if rates.beyond_peak:
        mfu = " · no MFU: faster than the peak below, which is too low"
    shares = f"data wait {share(rates.data_share, 1)} · checkpoint stall {share(rates.checkpoint_share, 1)}"
    gpu = f"GPU {size(rates.gpu_bytes)} · " if rates.gpu_bytes else ""
    memory = f"memory of a worker: {gpu}CPU {size(rates.cpu_bytes)}"
    return f"{first}\n{rates.tflops:.3g} TFLOP/s{workers}{mfu}\n{shares}\n{memory}"


def _device(found: Account) -> str:
    assert found.training
    workers = f"{found.attempt.workers} × " if found.attempt else ""
    peak = found.training.peak_tflops
    stated = f"peak {peak:.4g} TFLOP/s each ({found.training.peak_source})" if peak else found.training.peak_source
    zero = f", ZeRO {found.attempt.zero_stage}" if found.attempt else ""
    return f"{workers}{found.training.device}{zero}\n{stated}"


def _incidents(view: RunView) -> list[str]:
    shown: list[str] = []
    before: Event | None = None
    for event in view.events:
        if isinstance(event, Launched) and before and before.kind != "ended":
            shown.append(f"{_when(before.time)}  driver: nothing more was heard of the launch")
        before = event
        if isinstance(event, Incident):
            at = f" at {event.images:,} images" if event.images else ""
            shown.append(f"{_when(event.time)}  {event.cause}{at}: {_short(event.detail)}")
        elif isinstance(event, SaveFailed):
            shown.append(f"{_when(event.time)}  no checkpoint at {event.images:,} images: {_short(event.reason)}")
        elif isinstance(event, SetAside):
            shown.append(f"{_when(event.time)}  set aside {event.checkpoint}: {_short(event.reason)}")
    if view.status == "killed" and before:
        shown.append(f"{_when(before.time)}  driver: nothing more was heard of the launch")
    left_out = len(shown) - _INCIDENTS_SHOWN
    return ([f"… and {left_out} before"] if left_out > 0 else []) + shown[-_INCIDENTS_SHOWN:]


def _checkpoints(view: RunView) -> list[str]:
    if not view.checkpoints:
        lines = ["none yet"]
    else:
        newest, count = view.checkpoints[-1], len(view.checkpoints)
        total = size(sum(saved.bytes for saved in view.checkpoints))
        lines = [f"{newest.name}, {size(newest.bytes)}" + (f"; {count} in all, {total}" if count > 1 else "")]
    stalls = [event for event in view.events if isinstance(event, Checkpointed)]
    if stalls:
        mean = sum(event.stall_seconds for event in stalls) / len(stalls)
        upload = sum(event.upload_seconds for event in stalls) / len(stalls)
        lines.append(f"training stood still {mean:.2g} s for each, written in the background in {upload:.2g} s")
    if view.bad_checkpoints:
        lines.append(f"damaged, in checkpoints/bad: {', '.join(view.bad_checkpoints)}")
    return lines


def _next(view: RunView) -> list[str]:
    path = as_path(view.folder)
    if view.status == "running":
        return [f"follow it: {view.dashboard}"]
    if view.status == "finished":
        return [*_uses(view, path), view.dashboard]
    newest = f"from {view.checkpoints[-1].name}" if view.checkpoints else "from the start"
    return [f"the command that started it, once more: the run goes on {newest}", view.dashboard]


def _uses(view: RunView, path: str) -> list[str]:
    """Return the commands that make something of a finished run."""
    uses = {"classification": [], "captioning": [command("caption", path, "IMAGE")]}
    return uses.get(view.task or "", [command("sample", path), command("analyze", path)])


def _when(moment: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(moment))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 140 else f"{line[:139]}…"
