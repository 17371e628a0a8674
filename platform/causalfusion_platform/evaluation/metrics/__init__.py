"""Metrics as functions of features: Fréchet distance, Inception Score, precision and recall, memorization.

`statistics` accumulates means and covariances, `distances` computes pairwise distances in blocks. Each file cites
the paper and the conventions it follows. Open `frechet` first.
"""
