"""Reports for readers: terminal, tables, figures and HTML pages.

`terminal` shows a training run, `tables` and `figures` draw for files, and `html` fills the templates. `paper/`,
`sweeps/`, `runs/` and `data/` hold one kind of report each. `write` writes them into a folder. Open `write` first.
"""
