"""A table of the paper beside our numbers.

`report` joins rows, runs and claims, `statistics` compares seeds, `words` phrases the findings, and `content` holds
the tables that all renderings show. The other files render one report: terminal, pages (HTML and Markdown), LaTeX,
JSON and figures. Open `report` first.
"""
