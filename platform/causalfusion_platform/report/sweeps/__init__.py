"""Reports on sweeps.

`records` holds the facts of a trial, `live` is the table that follows a running sweep, `figures` and `html` make
the report at its end. Open `records` first.
"""
