"""Checkpoints of a run, and weights in the formats of other code.

`save` writes checkpoints in the background of training, `store` finds, completes and removes them, and `manifest`
verifies them by hashes. `engine_state` and `universal` hold DeepSpeed's state, for the same or another number of
ranks. `posthoc` makes averages after training, `convert` imports and exports. Open `store` first, then `save`.
"""
