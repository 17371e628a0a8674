"""MLflow's server with a login, and its Postgres. They outlive runs, and are one for a namespace."""

from __future__ import annotations

from ..cluster_file import ClusterFile, MlflowDeployment
from .documents import PART_OF, Tree, document
from .environment import AWS_KEYS, from_secret, value
from .pods import container_security, pod_basics, pod_security, resources

SERVER, POSTGRES = "causalfusion-mlflow", "causalfusion-postgres"
SERVER_PORT, POSTGRES_PORT = 5000, 5432
SERVER_LABELS = {**PART_OF, "app.kubernetes.io/name": "mlflow"}
POSTGRES_LABELS = {**PART_OF, "app.kubernetes.io/name": "postgres"}
SECRET_KEYS = (
    "POSTGRES_PASSWORD",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""Keys of the Secret `mlflow.secret`. The last two are those of the runs, at first the admin's."""

_CONFIG = "/etc/mlflow"
_DATABASE = f"postgresql://{POSTGRES}/mlflow"  # libpq takes user and password from PGUSER and PGPASSWORD
_UID = 999  # the user of Postgres' official image


def mlflow_documents(cluster: ClusterFile) -> list[Tree]:
    """Return the documents of MLflow. Empty if the cluster file deploys none."""
    deployed = cluster.mlflow
    if not isinstance(deployed, MlflowDeployment):
        return []
    store = [] if _in_bucket(deployed) else [_volume(cluster, deployed)]
    server = [_config(cluster), *store, _service(cluster, SERVER, SERVER_PORT, SERVER_LABELS)]
    database = _service(cluster, POSTGRES, POSTGRES_PORT, POSTGRES_LABELS)
    database["spec"]["clusterIP"] = "None"
    return [database, _postgres(cluster, deployed), *server, _deployment(cluster, deployed)]


def server_command(cluster: ClusterFile, deployed: MlflowDeployment) -> list[str]:
    """Return the command of the server. It has no secrets in it."""
    hosts = [SERVER, f"{SERVER}.{cluster.namespace}.svc.cluster.local", "localhost", "127.0.0.1"]
    return [
        "mlflow",
        "server",
        "--app-name=basic-auth",
        "--host=0.0.0.0",
        f"--port={SERVER_PORT}",
        "--workers=2",
        f"--backend-store-uri={_DATABASE}",
        f"--artifacts-destination={deployed.artifacts}",
        f"--allowed-hosts={','.join(f'{host}:*' for host in hosts)}",
    ]


def _in_bucket(deployed: MlflowDeployment) -> bool:
    return deployed.artifacts.startswith("s3://")


def _config(cluster: ClusterFile) -> Tree:
    """Return the settings of the login. Everyone with a login may log to every experiment."""
    lines = (
        "[mlflow]",
        "default_permission = EDIT",
        f"database_uri = {_DATABASE}",
        "admin_username = admin",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
    )
    data = {"basic_auth.ini": "\n".join(lines) + "\n"}
    return document("ConfigMap", "v1", SERVER, cluster.namespace, SERVER_LABELS, data=data)


def _volume(cluster: ClusterFile, deployed: MlflowDeployment) -> Tree:
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{deployed.size_gib}Gi"}},
    }
    return document("PersistentVolumeClaim", "v1", SERVER, cluster.namespace, SERVER_LABELS, spec=spec)


def _service(cluster: ClusterFile, name: str, port: int, labels: Tree) -> Tree:
    spec = {"type": "ClusterIP", "selector": labels, "ports": [{"name": "tcp", "port": port}]}
    return document("Service", "v1", name, cluster.namespace, labels, spec=spec)


def _deployment(cluster: ClusterFile, deployed: MlflowDeployment) -> Tree:
    command = server_command(cluster, deployed)
    probe = {
        "httpGet": {
            "path": "/health",
            "port": SERVER_PORT,
            "httpHeaders": [{"name": "Host", "value": f"localhost:{SERVER_PORT}"}],
        }
    }
    volumes: list[Tree] = [{"name": "config", "configMap": {"name": SERVER}}]
    mounts = [{"name": "config", "mountPath": _CONFIG, "readOnly": True}]
    if not _in_bucket(deployed):
        volumes.append({"name": "artifacts", "persistentVolumeClaim": {"claimName": SERVER}})
        mounts.append({"name": "artifacts", "mountPath": deployed.artifacts})
    container = {
        "name": "mlflow",
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": command[:2],
        "args": command[2:],
        "env": _server_environment(deployed),
        "ports": [{"name": "http", "containerPort": SERVER_PORT}],
        # MLflow migrates its database and imports for half a minute before it answers.
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 5},
        "resources": resources(1, 4),
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    pod = _pod(cluster, SERVER_LABELS, container, volumes, pod_security())
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # one server at a time has the volume and migrates the database
        "selector": {"matchLabels": SERVER_LABELS},
        "template": pod,
    }
    return document("Deployment", "apps/v1", SERVER, cluster.namespace, SERVER_LABELS, spec=spec)


def _server_environment(deployed: MlflowDeployment) -> list[Tree]:
    (password,) = from_secret(deployed.secret, ("POSTGRES_PASSWORD",))
    variables = [
        value("PGUSER", "mlflow"),
        {**password, "name": "PGPASSWORD"},
        *from_secret(deployed.secret, ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")),
        value("MLFLOW_AUTH_CONFIG_PATH", f"{_CONFIG}/basic_auth.ini"),
        value("MLFLOW_DISABLE_TELEMETRY", "true"),
        value("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),  # jobs of its AI features, which nobody here starts
    ]
    if deployed.artifacts_endpoint is not None:
        variables.append(value("MLFLOW_S3_ENDPOINT_URL", deployed.artifacts_endpoint))
    if deployed.artifacts_secret is not None:
        variables += from_secret(deployed.artifacts_secret, AWS_KEYS)
    return variables


def _postgres(cluster: ClusterFile, deployed: MlflowDeployment) -> Tree:
    probe = {"exec": {"command": ["pg_isready", "-U", "mlflow", "-d", "mlflow"]}, "periodSeconds": 10}
    container = {
        "name": "postgres",
        "image": deployed.postgres_image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            value("POSTGRES_USER", "mlflow"),
            value("POSTGRES_DB", "mlflow"),
            *from_secret(deployed.secret, ("POSTGRES_PASSWORD",)),
            value("PGDATA", "/var/lib/postgresql/data/pgdata"),
        ],
        "ports": [{"name": "postgres", "containerPort": POSTGRES_PORT}],
        "startupProbe": {**probe, "failureThreshold": 30},
        "readinessProbe": probe,
        "resources": resources(1, 2),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "data", "mountPath": "/var/lib/postgresql/data"},
            {"name": "run", "mountPath": "/var/run/postgresql"},
        ],
    }
    volumes: list[Tree] = [{"name": "run", "emptyDir": {}}]
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{deployed.size_gib}Gi"}},
        },
    }
    spec = {
        "serviceName": POSTGRES,
        "replicas": 1,
        "selector": {"matchLabels": POSTGRES_LABELS},
        "template": _pod(cluster, POSTGRES_LABELS, container, volumes, pod_security(_UID, _UID)),
        "volumeClaimTemplates": [claim],
    }
    return document("StatefulSet", "apps/v1", POSTGRES, cluster.namespace, POSTGRES_LABELS, spec=spec)


def _pod(cluster: ClusterFile, labels: Tree, container: Tree, volumes: list[Tree], security: Tree) -> Tree:
    spec = {
        **pod_basics(cluster, token=False),
        "securityContext": security,
        "containers": [container],
        "volumes": volumes,
    }
    return {"metadata": {"labels": labels}, "spec": spec}
