"""AR axis of the factorization: the AR step in which each token is generated.

`steps` draws the sizes of AR steps (decay γ) and `ordering` the patch order. `sequence` lays out class, clean and
noised tokens for the transformer. Open `sequence` first.
"""
