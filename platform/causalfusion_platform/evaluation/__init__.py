"""Scores of samples: features of images, and distances between sets of them.

`extractors/` turns images into features. `metrics/` holds FID, Inception Score, precision, recall and memorization.
`collect` gathers features, `reference` holds those of real images, and `measure` computes all scores. `evaluate`
scores a run by a classifier of its own data set. Open `measure` first, then `metrics/frechet`.
"""
