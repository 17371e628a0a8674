"""Training on one rank: the loop, the DeepSpeed engine, and the periodic work around them.

`loop` makes the steps and calls the hooks: `metrics`, `checkpointing`, `grids`, `guard` and `control`. `engine` and
`optimizer` wrap DeepSpeed and AdamW, `ema` averages the weights, and `resume` restores a checkpoint. `objective` is
the interface to a task. Open `loop` first, then `engine`.
"""
