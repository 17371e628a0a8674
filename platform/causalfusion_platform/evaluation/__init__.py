"""Scores of samples: features of images, and distances between sets of them.

`extractors/` turns images into features. `metrics/` holds FID, Inception Score, precision, recall and memorization.
`collect` gathers features, `reference` holds those of real images, and `measure` computes all scores. `classifier/`
trains and keeps the one classifier of a data set, by which `evaluate` scores runs. `identity` tells scores of two
classifiers apart. `caption_scores` scores captions, which `captions_file` reads. `property_scores` scores
captions and drawings of digits. `zero_shot_fid` chooses prompts. Open `measure` first, then `metrics/frechet`.
"""
