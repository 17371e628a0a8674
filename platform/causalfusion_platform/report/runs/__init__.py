"""Reports on runs: `list` all of them, `show` one, `comparison` of several, `dry_run` before one is started.

`curves` draws training losses, `goodput` says where the time of a run went. Open `show` first.
"""
