"""Metrics as functions of features: Fréchet distance, Inception Score, precision and recall, memorization.

`statistics` accumulates means and covariances, `distances` computes pairwise distances in blocks. `cider` scores
captions, whose words come from `caption_tokenizers`. Each file cites the paper and the conventions it follows. Open
`frechet` first.
"""
