"""Attention over one sequence of class, clean and noised tokens.

`mask` builds the generalized causal mask, `dense` computes attention under it, `cache` keeps keys and values
between AR steps. Open `mask` first.
"""
