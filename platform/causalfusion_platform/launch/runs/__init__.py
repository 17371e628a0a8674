"""The folder of a run and everything about it that needs no Ray.

`folder` is the run's folder as one object, `state` holds its run.json, `lock` allows one launch at a time.
`signals` and `exit_status` end a launch. `find` looks runs up, `sync` delivers records to MLflow, `register`
registers models, `public_config` writes the configuration that users read. Open `folder` first.
"""
