"""Probes: what the layers of a trained model know, by simple classifiers of its averaged tokens (Section 6).

`features` makes the rows of features, `linear` and `nearest` classify them, `probe` measures all layers of a model.
Open `probe` first.
"""
