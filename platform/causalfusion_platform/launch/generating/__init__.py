"""Generating a sample set on Ray workers, restartable.

`request` checks and plans the set, `actors` holds models on the workers, `generate` makes the set. Open `generate`
first.
"""
