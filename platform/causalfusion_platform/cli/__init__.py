"""The `causalfusion` command: one file per verb, which parses options, calls `launch` or `data`, and prints.

`main` registers all verbs and turns errors into exit statuses. Open `main` first, then the file of a verb.
"""
