"""Sweeps on Ray Tune: `sweep` runs one from its start to its report.

`job` holds the trials and their settings, `trials` turns a `sweep:` section into experiments. `search` and
`schedulers` choose among them, `tuning` runs them, `run_trial` is the process of one. `population` is
population-based training. `progress` shows trials, `cost` estimates them, `results` ranks them. `description` and
`register` publish to MLflow. Open `sweep` first.
"""
