"""The folder of a run and everything about it that needs no Ray.

`folder` opens it, `lock` allows one launch at a time, `signals` and `exit_status` end one, `find` looks runs up,
`sync` delivers records to MLflow, `register` registers models. Open `folder` first.
"""
