"""Faults to put into rendered files, each with the words by which it must be reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Trees = dict[str, Any]
"""Documents by Kind/name."""
Mutant = tuple[str, Callable[[Trees], Any], str]
"""Name, change of the documents, and words of the fault."""

JOB, SERVER, POSTGRES = (
    "RayJob/research-first",
    "Deployment/causalfusion-mlflow",
    "StatefulSet/causalfusion-postgres",
)
NODES, DASHBOARD = "NetworkPolicy/research-first-nodes", "NetworkPolicy/research-first-dashboard"
SUBMITTER = "NetworkPolicy/research-first-submitter"
DENY, MLFLOW_POLICY = "NetworkPolicy/causalfusion-default-deny", "NetworkPolicy/causalfusion-mlflow"


def cluster(trees: Trees) -> Any:
    """Return the Ray cluster of the run."""
    return trees[JOB]["spec"]["rayClusterSpec"]


def head(trees: Trees) -> Any:
    """Return the spec of the head's pod."""
    return cluster(trees)["headGroupSpec"]["template"]["spec"]


def group(trees: Trees) -> Any:
    """Return the group of workers."""
    return cluster(trees)["workerGroupSpecs"][0]


def worker(trees: Trees) -> Any:
    """Return the spec of a worker's pod."""
    return group(trees)["template"]["spec"]


def submitter(trees: Trees) -> Any:
    """Return the spec of the submitter's pod."""
    return trees[JOB]["spec"]["submitterPodTemplate"]["spec"]


def ray(trees: Trees) -> Any:
    """Return the container of Ray in a worker's pod."""
    return worker(trees)["containers"][0]


def server(trees: Trees) -> Any:
    """Return the spec of MLflow's pod."""
    return trees[SERVER]["spec"]["template"]["spec"]


def put(tree: Any, **values: Any) -> Any:
    """Set keys of a mapping, and return it."""
    tree.update(values)
    return tree


def rename(tree: Any, old: str, new: str) -> None:
    """Give a key another name."""
    tree[new] = tree.pop(old)


MUTANTS: list[Mutant] = [
    # Pod Security "restricted"
    ("no security context of a pod", lambda t: worker(t).pop("securityContext"), "runAsNonRoot is not true"),
    ("root", lambda t: put(worker(t)["securityContext"], runAsUser=0), "runAsUser is 0"),
    ("runAsNonRoot off", lambda t: put(head(t)["securityContext"], runAsNonRoot=False), "runAsNonRoot is not true"),
    ("no seccomp", lambda t: head(t)["securityContext"].pop("seccompProfile"), "seccompProfile.type is not"),
    (
        "seccomp off in a container",
        lambda t: put(ray(t)["securityContext"], seccompProfile={"type": "Unconfined"}),
        "seccompProfile.type is Unconfined",
    ),
    ("no security context of a container", lambda t: ray(t).pop("securityContext"), "allowPrivilegeEscalation"),
    (
        "added capability",
        lambda t: put(ray(t)["securityContext"]["capabilities"], add=["IPC_LOCK"]),
        "capabilities.add: IPC_LOCK",
    ),
    (
        "kept capabilities",
        lambda t: put(submitter(t)["containers"][0]["securityContext"], capabilities={"drop": ["NET_RAW"]}),
        "capabilities.drop is not [ALL]",
    ),
    ("privileged", lambda t: put(ray(t)["securityContext"], privileged=True), "privileged is not allowed"),
    (
        "privilege escalation",
        lambda t: put(server(t)["containers"][0]["securityContext"], allowPrivilegeEscalation=True),
        "allowPrivilegeEscalation is not false",
    ),
    (
        "root in a container",
        lambda t: put(ray(t)["securityContext"], runAsUser=0),
        "makes the container root",
    ),
    (
        "folder of the node",
        lambda t: put(worker(t)["volumes"][0], hostPath={"path": "/data"}),
        "is of kind hostPath",
    ),
    (
        "NFS mounted by the pod",
        lambda t: worker(t)["volumes"].append({"name": "nfs", "nfs": {"server": "x", "path": "/y"}}),
        "is of kind nfs",
    ),
    ("network of the node", lambda t: put(worker(t), hostNetwork=True), "hostNetwork is not allowed"),
    ("processes of the node", lambda t: put(worker(t), hostPID=True), "hostPID is not allowed"),
    (
        "port of the node",
        lambda t: put(head(t)["containers"][0]["ports"][1], hostPort=8265),
        "hostPort is not allowed",
    ),
    (
        "an init container as root",
        lambda t: put(
            worker(t),
            initContainers=[{"name": "fix", "image": ray(t)["image"], "resources": ray(t)["resources"]}],
        ),
        "initContainers[fix].securityContext.allowPrivilegeEscalation",
    ),
    (
        "token of Kubernetes in a worker",
        lambda t: put(worker(t), automountServiceAccountToken=True),
        "automountServiceAccountToken is not false",
    ),
    (
        "service account without an autoscaler",
        lambda t: put(head(t), serviceAccountName="admin"),
        "serviceAccountName is not allowed",
    ),
    # secrets
    (
        "literal password",
        lambda t: ray(t)["env"].append({"name": "MLFLOW_TRACKING_PASSWORD", "value": "hunter2"}),
        "env[MLFLOW_TRACKING_PASSWORD] has its value in the file",
    ),
    (
        "password of Postgres",
        lambda t: put(
            trees_env(t[POSTGRES]["spec"]["template"]["spec"], "POSTGRES_PASSWORD"), value="hunter2", valueFrom=None
        ),
        "env[POSTGRES_PASSWORD] has its value in the file",
    ),
    (
        "password in an address",
        lambda t: put(trees_env(worker(t), "MLFLOW_TRACKING_URI"), value="http://me:hunter2@mlflow:5000"),
        "an address with a user or a password",
    ),
    (
        "password in the command",
        lambda t: put(t[JOB]["spec"], entrypoint=t[JOB]["spec"]["entrypoint"] + " my.api_key=abc"),
        "a secret is written out",
    ),
    (
        "password in MLflow's settings",
        lambda t: put(
            t["ConfigMap/causalfusion-mlflow"]["data"], **{"basic_auth.ini": "[mlflow]\nadmin_password = hunter2\n"}
        ),
        "a secret is written out",
    ),
    (
        "token of Ray",
        lambda t: ray(t)["env"].append({"name": "RAY_AUTH_TOKEN", "value": "abc"}),
        "env[RAY_AUTH_TOKEN]: the operator sets it",
    ),
    (
        "plain Secret",
        lambda t: put(
            t,
            **{
                "Secret/x": {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": "x", "namespace": "default"},
                    "stringData": {"a": "b"},
                }
            },
        ),
        "kind Secret is not allowed",
    ),
    ("no token", lambda t: cluster(t).pop("authOptions"), "authOptions.mode is not token"),
    # ways in from outside
    (
        "load balancer",
        lambda t: put(t["Service/causalfusion-mlflow"]["spec"], type="LoadBalancer"),
        "spec.type is LoadBalancer",
    ),
    (
        "port of every node",
        lambda t: put(t["Service/causalfusion-postgres"]["spec"], type="NodePort"),
        "spec.type is NodePort",
    ),
    (
        "dashboard outside",
        lambda t: put(cluster(t)["headGroupSpec"], serviceType="LoadBalancer"),
        "serviceType is LoadBalancer",
    ),
    (
        "ingress of the dashboard",
        lambda t: put(cluster(t)["headGroupSpec"], enableIngress=True),
        "enableIngress",
    ),
    (
        "external addresses",
        lambda t: put(t["Service/causalfusion-mlflow"]["spec"], externalIPs=["203.0.113.7"]),
        "spec.externalIPs is not allowed",
    ),
    ("image by tag", lambda t: put(ray(t), image="causalfusion:latest"), "allowed: an image by digest"),
    (
        "image of Postgres by tag",
        lambda t: put(t[POSTGRES]["spec"]["template"]["spec"]["containers"][0], image="postgres:16"),
        "allowed: an image by digest",
    ),
    # network policies
    (
        "no default deny and no policy of nodes",
        lambda t: (t.pop(DENY), t.pop(NODES)),
        "no network policy selects it",
    ),
    (
        "policy of a cluster's name that a RayJob's cluster never has",
        lambda t: put(t[NODES]["spec"]["podSelector"], matchLabels={"ray.io/cluster": "research-first"}),
        "spec.podSelector selects no pod",
    ),
    (
        "misspelt label of a peer",
        lambda t: put(peer(t[DASHBOARD]), matchLabels={"app.kubernetes.io/component": "submiter"}),
        "selects no pod of these files",
    ),
    (
        "dashboard for everybody",
        lambda t: t[DASHBOARD]["spec"]["ingress"][0].pop("from"),
        "which allows everybody",
    ),
    (
        "dashboard for the namespace",
        lambda t: put(peer(t[DASHBOARD]), matchLabels={}),
        "a pod without labels can reach port 8265",
    ),
    (
        "all ports of the head for the submitter",
        lambda t: (t[DASHBOARD]["spec"]["ingress"][0].pop("ports"), t[SUBMITTER]["spec"]["egress"][0].pop("ports")),
        "can reach port 6379",
    ),
    (
        "another run's nodes",
        lambda t: put(peer(t[NODES]), matchLabels={"ray.io/is-ray-node": "yes"}),
        "a pod of another run can reach port",
    ),
    ("no policy of the submitter", lambda t: t.pop(SUBMITTER), "cannot reach port 8265"),
    ("one port among nodes", lambda t: one_port(t[NODES]), "cannot reach port 20000"),
    ("operator elsewhere", lambda t: operator_elsewhere(t), "cannot read the job's state"),
    ("no names", lambda t: t.pop("NetworkPolicy/causalfusion-dns"), "cannot resolve names"),
    ("no way to MLflow", lambda t: t.pop(MLFLOW_POLICY), "cannot reach port 5000"),
    ("direction left out", lambda t: put(t[NODES]["spec"], policyTypes=["Ingress"]), "so the rule has no effect"),
    (
        "the whole internet",
        lambda t: t[NODES]["spec"]["egress"].append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        "addresses without ports",
    ),
    (
        "Postgres for runs",
        lambda t: (
            t["NetworkPolicy/causalfusion-postgres"]["spec"].pop("ingress"),
            put(t["NetworkPolicy/causalfusion-postgres"]["spec"], ingress=[{}]),
        ),
        "which allows everybody",
    ),
    # the operator's rules
    (
        "wrong version of the API",
        lambda t: put(t[JOB], apiVersion="ray.io/v1alpha1"),
        "apiVersion is 'ray.io/v1alpha1'",
    ),
    ("misspelt key of a job", lambda t: rename(t[JOB]["spec"], "backoffLimit", "backOffLimit"), "backOffLimit"),
    ("misspelt key of a group", lambda t: rename(group(t), "minReplicas", "minReplica"), "minReplica "),
    ("misspelt key of a pod", lambda t: rename(worker(t), "tolerations", "toleration"), "toleration "),
    ("misspelt key of a container", lambda t: rename(ray(t), "volumeMounts", "volumeMount"), "volumeMount "),
    (
        "replicas above their limit",
        lambda t: put(group(t), replicas=3),
        "replicas 3 exceeds maxReplicas 2",
    ),
    ("fewest above most", lambda t: put(group(t), minReplicas=9), "minReplicas 9 exceeds maxReplicas 2"),
    (
        "more nodes than the group has",
        lambda t: put(group(t), replicas=9, minReplicas=9, maxReplicas=9),
        "the cluster file allows 8",
    ),
    (
        "too few nodes",
        lambda t: put(group(t), replicas=1, minReplicas=1, maxReplicas=1),
        "hold 1 workers, and the command takes 2",
    ),
    ("unknown group", lambda t: put(group(t), groupName="tpu"), "has no such group"),
    ("name too long", lambda t: put(t[JOB]["metadata"], name="a" * 48), "has 48 characters; allowed: at most 47"),
    ("name with capitals", lambda t: put(t[JOB]["metadata"], name="Research"), "is not lower-case letters"),
    ("old Ray", lambda t: put(cluster(t), rayVersion="2.51.0"), "needs 2.52.0 or newer"),
    ("another Ray than the image's", lambda t: put(cluster(t), rayVersion="2.59.0"), "the image has 2.60.0"),
    (
        "number as a start parameter",
        lambda t: put(cluster(t)["headGroupSpec"]["rayStartParams"], **{"num-cpus": 0}),
        "every value is a text",
    ),
    (
        "workers on the head",
        lambda t: put(cluster(t)["headGroupSpec"]["rayStartParams"], **{"num-cpus": "8"}),
        "would take the driver's node",
    ),
    ("time to live without a shutdown", lambda t: t[JOB]["spec"].pop("shutdownAfterJobFinishes"), "needs shutdown"),
    ("no deadline", lambda t: put(t[JOB]["spec"], activeDeadlineSeconds=0), "activeDeadlineSeconds is 0"),
    ("no command", lambda t: put(t[JOB]["spec"], entrypoint=" "), "entrypoint is empty"),
    ("unknown mode", lambda t: put(t[JOB]["spec"], submissionMode="K8SJobMode"), "submissionMode is 'K8SJobMode'"),
    (
        "sidecar with a submitter",
        lambda t: put(t[JOB]["spec"], submissionMode="SidecarMode"),
        "submitterPodTemplate does not go with SidecarMode",
    ),
    (
        "autoscaler v2 without an autoscaler",
        lambda t: head(t)["containers"][0]["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "needs enableInTreeAutoscaling",
    ),
    (
        "the operator's own policies",
        lambda t: put(cluster(t), networkPolicy={"mode": "DenyAll"}),
        "needs the operator's gate RayClusterNetworkPolicy",
    ),
    (
        "name that the head's service selects by",
        lambda t: put(
            cluster(t)["headGroupSpec"]["template"]["metadata"]["labels"],
            **{"app.kubernetes.io/name": "causalfusion"},
        ),
        "the operator's service selects by its own",
    ),
    (
        "runtime environment that is not YAML",
        lambda t: put(t[JOB]["spec"], runtimeEnvYAML="env_vars: [a"),
        "runtimeEnvYAML is not YAML",
    ),
    # what runs count on
    (
        "requests below limits",
        lambda t: put(ray(t)["resources"], requests={"cpu": "1", "memory": "1Gi"}),
        "requests and limits differ",
    ),
    ("memory in a wrong unit", lambda t: wrong_memory(t), "which is not a quantity"),
    (
        "no memory",
        lambda t: put(ray(t)["resources"], limits={"cpu": "4"}, requests={"cpu": "4"}),
        "memory is missing",
    ),
    (
        "small shared memory",
        lambda t: put(worker(t)["volumes"][1]["emptyDir"], sizeLimit="64Mi"),
        "of the pod's memory; allowed: 30% to 50%",
    ),
    (
        "shared memory on disk",
        lambda t: worker(t)["volumes"][1]["emptyDir"].pop("medium"),
        "/dev/shm is not memory",
    ),
    (
        "another home",
        lambda t: put(trees_env(worker(t), "CAUSALFUSION_HOME"), value="/tmp"),
        "CAUSALFUSION_HOME is",
    ),
    ("another owner", lambda t: put(trees_env(head(t), "CAUSALFUSION_USER"), value="bob"), "CAUSALFUSION_USER is"),
    (
        "label of another owner",
        lambda t: put(t[JOB]["metadata"]["labels"], **{"causalfusion/user": "bob"}),
        "the cluster file's owner is research",
    ),
    ("home not mounted", lambda t: ray(t)["volumeMounts"].pop(0), "nothing is mounted at /mnt/causalfusion"),
    ("mount without a volume", lambda t: worker(t)["volumes"].pop(1), "names no volume of the pod"),
    (
        "claim that is not there",
        lambda t: put(worker(t)["volumes"][0], persistentVolumeClaim={"claimName": "other"}),
        "claim other is not in these files",
    ),
    (
        "home for one node",
        lambda t: put(t["PersistentVolumeClaim/causalfusion-home"]["spec"], accessModes=["ReadWriteOnce"]),
        "allowed: [ReadWriteMany]",
    ),
    (
        "no time for a checkpoint",
        lambda t: put(worker(t), terminationGracePeriodSeconds=5),
        "for a last checkpoint",
    ),
    ("no hook before the end", lambda t: ray(t).pop("lifecycle"), "no preStop hook"),
    (
        "another namespace",
        lambda t: put(t[JOB]["metadata"], namespace="kube-system"),
        "metadata.namespace is 'kube-system'",
    ),
    ("no job", lambda t: t.pop(JOB), "no RayJob"),
    (
        "rights over the whole cluster",
        lambda t: put(
            t,
            **{
                "ClusterRole/x": {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "ClusterRole",
                    "metadata": {"name": "x", "namespace": "default"},
                    "rules": [],
                }
            },
        ),
        "kind ClusterRole is not allowed",
    ),
]


def trees_env(pod: Any, name: str) -> Any:
    """Return a variable of a pod's first container."""
    return next(one for one in pod["containers"][0]["env"] if one["name"] == name)


def peer(policy: Any) -> Any:
    """Return the selector of the first peer of a policy's first rule for ingress."""
    return policy["spec"]["ingress"][0]["from"][0]["podSelector"]


def one_port(policy: Any) -> None:
    """Let the nodes of a run reach each other at one port."""
    policy["spec"]["ingress"][0]["ports"] = [{"protocol": "TCP", "port": 6379}]


def operator_elsewhere(trees: Trees) -> None:
    """Expect the operator in another namespace."""
    selector = trees[DASHBOARD]["spec"]["ingress"][0]["from"][1]["namespaceSelector"]
    selector["matchLabels"] = {"kubernetes.io/metadata.name": "operators"}


def wrong_memory(trees: Trees) -> None:
    """Write memory as Docker does."""
    for kind in ("requests", "limits"):
        ray(trees)["resources"][kind]["memory"] = "16gb"
