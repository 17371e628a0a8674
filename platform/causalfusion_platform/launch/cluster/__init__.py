"""Ray itself: `session` connects to a cluster or starts a local one, `submit` runs commands as Ray jobs.

`head` finds a cluster's head, `named` clusters by name. `jobs`, `follow`, `stop`, `resume` and `fetch` are about
jobs. `resources` counts the workers that fit, `failures` finds the cause of an error that came through Ray.
Open `session` first.
"""
