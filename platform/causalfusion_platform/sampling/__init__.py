"""Samples of trained models: sets of them, grids, and single images for people.

`sample_set` defines the plan of a set and its folder. `part_maker` generates its parts, `parts` keeps them, and
`outputs` writes `samples.npz` and PNGs. `generate` shares samples among ranks, `grid` draws them, and `interactive`
generates and edits images in one process. Open `sample_set` first, then `generate`.
"""
