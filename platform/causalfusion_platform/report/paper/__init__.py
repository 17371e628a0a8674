"""A table of the paper beside our numbers.

`report` joins rows, runs and claims, `statistics` compares seeds, `words` phrases the findings. The other files
render one report: terminal, Markdown, HTML, LaTeX, JSON and figures. Open `report` first.
"""
