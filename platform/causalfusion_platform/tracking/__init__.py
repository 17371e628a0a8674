"""Records of a run: its journal, and their delivery to MLflow.

`journal` holds the events of a run, and `outbox` adds records for MLflow to it. `delivery` sends them by the calls
in `mlflow_calls`, in a thread of the driver. `accounting`, `ledger` and `rates` compute goodput and speeds from the
events. `registry` holds weights as versions of a model. Open `journal` first, then `delivery`.
"""
