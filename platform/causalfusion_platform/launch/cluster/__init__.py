"""Ray itself: `session` connects to a cluster or starts a local one, `submit` and `head` run commands as Ray jobs.

`resources` counts the workers that fit, `failures` finds the cause of an error that came through Ray. Open
`session` first.
"""
