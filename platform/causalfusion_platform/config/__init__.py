"""Configuration of experiments: typed, frozen sections, composed from YAML and overrides.

`schema` defines every key, with `sweep` for the `sweep:` section and `paper_table` for tables of the paper.
`compose` reads and validates experiments, and `errors` has the error for wrong input. Open `schema` first.
"""
