"""The first axis of the factorization: which tokens come in which AR step.

`steps` draws the sizes of AR steps (decay γ), `ordering` the order of patches, `sequence` lays class, clean and
noised tokens out for the transformer. Open `sequence` first.
"""
