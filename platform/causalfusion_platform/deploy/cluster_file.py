"""The typed file of a cluster: where its nodes, storage, network and MLflow are.

The experiment says how many workers and GPUs a run takes. This file says which machines give them.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..config.section import Section

_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
LONGEST_NAME = 47
"""Characters of the longest name of a RayJob or RayCluster, to which the operator appends suffixes."""


def dns_label(text: str) -> str:
    """Return a text that is a DNS label, which names of Kubernetes and Slurm are.

    Raises:
        ValueError: it is not.
    """
    if not _LABEL.fullmatch(text) or len(text) > LONGEST_NAME:
        raise ValueError(
            f"{text!r:.80} is not a DNS label: lower-case letters, digits and hyphens, first a letter, no hyphen "
            f"at the end, at most {LONGEST_NAME} characters"
        )
    return text


Label = Annotated[str, AfterValidator(dns_label)]


class Gpu(Section):
    """GPUs of a node."""

    kind: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Product, as the nodes are labelled: `nvidia.com/gpu.product` of Kubernetes, the type of Slurm's gres."""
    count: int = Field(1, ge=1, le=16)
    """GPUs of a node. One worker takes one."""


class Head(Section):
    """Node with Ray's head and the driver. It trains nothing."""

    cpus: float = Field(2, gt=0)
    """CPUs."""
    memory_gib: float = Field(8, ge=1)
    """Memory in GiB."""
    price_per_hour: float = Field(0, ge=0)
    """Price of the node per hour."""


class Group(Section):
    """Nodes of one kind, for workers."""

    cpus: float = Field(gt=0)
    """CPUs of a node: those of its workers, and some for reading data."""
    memory_gib: float = Field(ge=1)
    """Memory of a node in GiB."""
    gpu: Gpu | None = None
    """GPUs of a node. null: none."""
    min_nodes: int = Field(0, ge=0)
    """Fewest nodes. Below `max_nodes` an autoscaler adds nodes when a run needs them."""
    max_nodes: int = Field(ge=1)
    """Most nodes."""
    spot: bool = False
    """Nodes that can be taken back at short notice. A run on them writes a checkpoint at the notice."""
    price_per_hour: float = Field(0, ge=0)
    """Price of a node per hour."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that the nodes have (Kubernetes), to choose them by."""
    constraint: str | None = Field(None, pattern=r"^[A-Za-z0-9_&|!\[\]*.-]+$")
    """Features that the nodes have (Slurm's --constraint)."""
    tolerated_taints: tuple[str, ...] = ()
    """Keys of taints of the nodes that pods tolerate (Kubernetes), beside that of GPUs and, with `spot`, those of
    GKE's and AKS' spot nodes."""

    @model_validator(mode="after")
    def _check(self) -> Group:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} exceeds max_nodes {self.max_nodes}")
        return self


class VolumeClaim(Section):
    """Volume of Kubernetes that all nodes mount."""

    kind: Literal["pvc"] = "pvc"
    claim: Label = "causalfusion-home"
    """Name of the PersistentVolumeClaim."""
    size_gib: int = Field(100, ge=1)
    """Size in GiB."""
    storage_class: str | None = None
    """Storage class with ReadWriteMany. null: the cluster's default."""


class Nfs(Section):
    """Folder that all nodes mount: NFS, Lustre, or any other shared file system."""

    kind: Literal["nfs"]
    server: str | None = Field(None, pattern=r"^[A-Za-z0-9.:_-]+$")
    """Server to mount from (Kubernetes). null: the nodes have the folder mounted."""
    path: str = Field(pattern=r"^/[^\s:]*$")
    """Path on the server, or on the nodes without a server."""
    size_gib: int = Field(100, ge=1)
    """Size that the volume states (Kubernetes), in GiB. The server alone limits it."""


class ObjectStorage(Section):
    """Bucket in place of a shared folder."""

    kind: Literal["s3"]
    url: str = Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[^\s?#]*)?$")
    """s3://BUCKET/PREFIX of runs."""
    endpoint: str | None = Field(None, pattern=r"^https?://[^\s@]+$")
    """Address of another S3 than Amazon's."""
    secret: Label | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. null: the nodes' own role."""


class Network(Section):
    """Network between nodes."""

    interface: str | None = Field(None, pattern=r"^[A-Za-z0-9=^,._-]+$")
    """Interface of Gloo and NCCL. null: that of Ray's node address."""
    infiniband: bool = False
    """Nodes have InfiniBand or RoCE, which NCCL uses."""
    rdma_resource: str = "rdma/hca_shared_devices_a"
    """Resource of Kubernetes that gives a pod the InfiniBand devices."""
    operator_namespace: Label = "kuberay-system"
    """Namespace of the KubeRay operator, which reads the state of jobs from the dashboard."""
    egress: tuple[Annotated[str, Field(pattern=r"^\d{1,3}(\.\d{1,3}){3}/\d{1,2}:\d{1,5}$")], ...] = ()
    """Other addresses that pods may reach (Kubernetes): NETWORK/BITS:PORT, such as 0.0.0.0/0:443 for downloads."""


class MlflowServer(Section):
    """MLflow server that exists."""

    kind: Literal["uri"]
    uri: str = Field(pattern=r"^(https?|databricks)://\S+$")
    """Its address, without a password."""
    secret: Label | None = None
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""


class MlflowDeployment(Section):
    """MLflow server to deploy beside the cluster, on Postgres, with basic-auth."""

    kind: Literal["deploy"]
    secret: Label = "causalfusion-mlflow"
    """Secret with POSTGRES_PASSWORD, MLFLOW_AUTH_ADMIN_PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY,
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    artifacts: str = Field("/mlflow/artifacts", pattern=r"^(s3://[a-z0-9][a-z0-9.-]+(/\S*)?|/\S*)$")
    """Store of artifacts: s3://BUCKET/PREFIX, or a folder of the server's volume."""
    size_gib: int = Field(20, ge=1)
    """Size of the server's and of the database's volume in GiB."""
    artifacts_endpoint: str | None = Field(None, pattern=r"^https?://[^\s@]+$")
    """Address of another S3 than Amazon's."""
    artifacts_secret: Label | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. null: the node's own role."""
    postgres_image: str
    """Image of Postgres by digest, of the official image."""

    @field_validator("postgres_image")
    @classmethod
    def _by_digest(cls, value: str) -> str:
        return by_digest(value)


class Deadlines(Section):
    """Limits of time."""

    pending_seconds: int = Field(1800, ge=60)
    """Longest wait for nodes."""
    run_seconds: int = Field(86_400, ge=60)
    """Longest time of a run. Its checkpoints stay, and the same command continues it."""
    grace_seconds: int = Field(120, ge=15)
    """Time to write a checkpoint between the notice of an end and the end."""
    after_seconds: int = Field(600, ge=0)
    """Time after a run's end until its nodes are given back."""


class Launcher(Section):
    """Ray's cluster launcher."""

    provider: Literal["aws", "gcp", "local"]
    region: str | None = None
    """Region (AWS, GCP)."""
    zone: str | None = None
    """Availability zone (GCP)."""
    project: str | None = None
    """Project (GCP)."""
    instances: dict[str, str] = Field(default_factory=dict)
    """Group, or `head` → type of its machines (AWS, GCP)."""
    machine_image: str | None = None
    """Disk image of the machines (AWS: ami-…, GCP: its source image)."""
    head_host: str | None = None
    """Address of the head (local)."""
    worker_hosts: tuple[str, ...] = ()
    """Addresses of the workers (local)."""
    ssh_user: str = "ubuntu"
    """User for SSH."""

    @model_validator(mode="after")
    def _check(self) -> Launcher:
        needed = {"aws": ("region",), "gcp": ("region", "zone", "project"), "local": ("head_host", "worker_hosts")}
        for key in needed[self.provider]:
            if not getattr(self, key):
                raise ValueError(f"provider {self.provider} needs {key}")
        return self


class Slurm(Section):
    """Slurm."""

    account: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Account."""
    qos: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Quality of service."""
    setup: tuple[str, ...] = ()
    """Commands before Ray starts on each node, such as `module load cuda` or the activation of an environment."""
    container: Literal["none", "pyxis", "apptainer"] = "none"
    """Container of the nodes' processes. none: the program of the shared file system."""


class ClusterFile(Section):
    """Whole cluster file."""

    target: Literal["kuberay", "ray", "slurm"]
    """`kuberay`: Kubernetes with the KubeRay operator. `ray`: Ray's cluster launcher. `slurm`: sbatch."""
    owner: Label
    """User. Names of jobs begin with it, and runs belong to it."""
    namespace: Label = "default"
    """Namespace of Kubernetes."""
    context: str | None = None
    """kubectl's context that the file is for. null: whichever is current."""
    image: str = ""
    """Image of all nodes by digest: NAME@sha256:…. Slurm without containers has none."""
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$")
    """Ray's version in the image."""
    home: str = Field("/mnt/causalfusion", pattern=r"^/[^\s:]*[^\s:/]$")
    """CAUSALFUSION_HOME of all nodes: where they mount the shared folder."""
    head: Head = Head()
    groups: dict[Label, Group] = Field(min_length=1)
    """Groups of nodes by name."""
    storage: Annotated[VolumeClaim | Nfs | ObjectStorage, Field(discriminator="kind")] = VolumeClaim()
    network: Network = Network()
    mlflow: Annotated[MlflowServer | MlflowDeployment, Field(discriminator="kind")] | None = None
    """MLflow. null: the SQLite file below `home`, which only one node may write."""
    queue: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Local queue of Kueue, or partition of Slurm."""
    priority: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Priority class (Kubernetes)."""
    deadlines: Deadlines = Deadlines()
    retries: int = Field(2, ge=0, le=20)
    """New starts after a loss of the head or the driver. Each continues the run."""
    image_pull_secret: Label | None = None
    """Secret of the image registry."""
    launcher: Launcher | None = None
    slurm: Slurm = Slurm()

    @field_validator("image")
    @classmethod
    def _image_by_digest(cls, value: str) -> str:
        return by_digest(value) if value else value

    @model_validator(mode="after")
    def _check(self) -> ClusterFile:
        in_container = self.target == "kuberay" or (self.target == "slurm" and self.slurm.container != "none")
        if in_container and not self.image:
            raise ValueError(f"target {self.target} needs an image")
        if self.target == "ray" and self.launcher is None:
            raise ValueError("target ray needs a section launcher")
        if self.target == "kuberay" and isinstance(self.storage, Nfs) and self.storage.server is None:
            raise ValueError(
                "target kuberay takes storage kind nfs with a server: pods may not mount a node's folder"
            )
        if self.target != "kuberay" and isinstance(self.storage, VolumeClaim):
            raise ValueError(f"a volume claim is Kubernetes': target {self.target} takes storage kind nfs or s3")
        if self.target != "kuberay" and isinstance(self.mlflow, MlflowDeployment):
            raise ValueError(f"target {self.target} deploys no MLflow: give mlflow kind uri")
        return self


def by_digest(image: str) -> str:
    """Return the name of an image that names its content.

    Raises:
        ValueError: it does not, as a tag can move.
    """
    if not _DIGEST.fullmatch(image):
        raise ValueError(
            f"{image!r:.120} does not name an image by digest, NAME@sha256:<64 hex digits>: "
            "docker inspect --format '{{index .RepoDigests 0}}' NAME prints it"
        )
    return image
