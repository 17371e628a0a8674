"""Reproducing a table of the paper: `reproduce` trains its rows, measures them and writes the report.

`rows` plans the trainings, `measurable` checks extractors and references before them, `figures` draws. Open
`reproduce` first.
"""
