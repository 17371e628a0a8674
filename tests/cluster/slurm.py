"""A Slurm of the test's own: a controller and two nodes on hosts that are really apart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import Host, Process, Switch, end, until

from causalfusion_platform.deploy.slurm.rules import check_script

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol", "sinfo")
_KILL_WAIT = 2
"""Seconds that Slurm leaves a job between TERM and KILL."""


def why_no_slurm() -> str | None:
    """Return why there is no Slurm to start, in words, or None."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_search()) is None]
    return f"{', '.join(missing)} missing: tests/cluster/install installs them" if missing else None


def _search() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


class Slurm:
    """A Slurm whose controller runs on one host, and whose two nodes run on others."""

    def __init__(self, folder: Path, control: Host, nodes: Sequence[Host]) -> None:
        self.folder, self.control, self.nodes = folder, control, nodes
        self.configuration = folder / "slurm.conf"
        self._daemons: list[Process] = []
        self._munged = self._start_munge()
        self.configuration.write_text(self._configured())
        self._start(control, "slurmctld", "-D", "-f", self.configuration)
        for node in nodes:
            self._start(node, "slurmd", "-D", "-N", node.name, "-f", self.configuration)
        until(lambda: self.states() == {node.name: "idle" for node in nodes}, self.said)

    def _start_munge(self) -> subprocess.Popen[bytes]:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(64))
        files = {
            "key-file": key,
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "seed-file": folder / "seed",
        }
        options = [f"--{name}={path}" for name, path in files.items()]
        with (folder / "log").open("wb") as log:
            munged = subprocess.Popen(
                ["munged", "--foreground", "--force", *options, f"--log-file={folder / 'munged.log'}"],
                env={"PATH": _search()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: (folder / "socket").exists(), lambda: (folder / "log").read_text())
        return munged

    def _configured(self) -> str:
        control, folder = self.control, self.folder
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{control.name}({control.address})",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # A job that was queued again begins when its old credentials have expired, by default after 120 s.
            "AuthInfo": f"socket={folder / 'munge/socket'},cred_expire=20",
            "CredType": "cred/munge",
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": folder / "spool-%n",
            "SlurmctldPidFile": folder / "slurmctld.pid",
            "SlurmdPidFile": folder / "slurmd-%n.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "ReturnToService": 2,
            "KillWait": _KILL_WAIT,
            "JobRequeue": 1,
        }
        (folder / "state").mkdir()
        lines = [f"{name}={value}" for name, value in settings.items()]
        for node in self.nodes:
            (folder / f"spool-{node.name}").mkdir()
            lines.append(
                f"NodeName={node.name} NodeHostname={node.name} NodeAddr={node.address} CPUs={os.cpu_count()} "
                "RealMemory=1900 State=UNKNOWN"
            )
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        return "\n".join(lines) + "\n"

    def _start(self, host: Host, *command: str | Path) -> None:
        log = self.folder / f"{command[0]}-{host.name}.log"
        self._daemons.append(host.start(*command, log=log, PATH=_search()))

    def run(self, *command: str | Path, home: Path | None = None) -> str:
        """Run a command on the controller's host, of Slurm's or with a CAUSALFUSION_HOME; return its output."""
        return self.control.run(
            *command, SLURM_CONF=str(self.configuration), PATH=self.path, CAUSALFUSION_HOME=str(home or self.folder)
        ).stdout

    @property
    def path(self) -> str:
        """PATH of a user of this Slurm."""
        return os.pathsep.join([str(Path(sys.executable).parent), _search()])

    def states(self) -> dict[str, str]:
        """Return the state of each node."""
        listed = self.run("sinfo", "-h", "-N", "-o", "%N %T").split()
        return dict(zip(listed[::2], listed[1::2], strict=True))

    def state(self, job: str) -> str:
        """Return the state of a job, such as PENDING, RUNNING or COMPLETED."""
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        assert found is not None
        return str(found[1])

    def said(self) -> str:
        """Return the output of all daemons."""
        return "\n".join(f"{daemon.log.name}:\n{daemon.said()[-2000:]}" for daemon in self._daemons)

    def remove(self) -> None:
        """End all daemons."""
        for daemon in self._daemons:
            daemon.end()
        end(self._munged)


@contextmanager
def slurm(switch: Switch, folder: Path) -> Iterator[Slurm]:
    """A Slurm of two nodes."""
    control, *nodes = (switch.host(name) for name in ("login", "node-1", "node-2"))
    folder.mkdir()
    made = Slurm(folder, control, nodes)
    try:
        yield made
    finally:
        made.remove()


def assert_no_fault(script: Path) -> None:
    """Check a rendered script by the rules."""
    assert list(check_script(script.name, script.read_text())) == []
