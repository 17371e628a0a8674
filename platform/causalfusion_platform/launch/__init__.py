"""Launch the long commands: training, generation, evaluation, sweeps, reproduction, encoding, and the doctor.

A module imports only from lower floors: `cluster`, `runs` < `training`, `generating` < `evaluating`, `sweeping` <
`reproduction`, `doctor`, `encode`. Open `training/train.py` first.
"""
