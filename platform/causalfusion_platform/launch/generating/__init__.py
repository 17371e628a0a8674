"""Generating a sample set on Ray workers, restartable.

`request` checks what is asked for, `actors` hold models on the workers, `generate` runs the set. Open `generate`
first.
"""
