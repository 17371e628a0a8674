"""Training a run on Ray: `train` checks its inputs, `launch` runs it to its summary.

`supervisor` tries again after failures, `attempt` is one Ray Train worker group seen from the driver, `worker` one
process of it. `heartbeat` and `progress_actor` carry signs of life and orders between them. Open `train` first.
"""
