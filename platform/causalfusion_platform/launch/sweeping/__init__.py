"""Sweeps on Ray Tune: `sweep` runs one from its start to its report.

`trials` turns a `sweep:` section into experiments, `search` and `schedulers` choose among them, `tuning` runs them,
`population` is population-based training, `results` what came of it. Open `sweep` first.
"""
