"""Training a run on Ray: `train` checks its inputs, `launch` runs it to its summary.

`supervisor` retries after failures, `elastic` fits the number of workers, `attempt` is one Ray Train worker group
seen from the driver. `entry` and `worker` run in its processes. `heartbeat` and `progress_actor` carry progress and
requests between them. `dry_run` works out the cost. Open `train` first.
"""
