"""Attention over one sequence of class, text, clean and noised tokens.

`mask` says which token sees which: the generalized causal mask. `plan` holds that for a training sequence. It
chooses the form, in two parts (`split`) or in one (`flex`). `dense` is attention under a mask, with the table of
forms. `cache` keeps keys and values between AR steps. Open `mask` first, then `plan`.
"""
