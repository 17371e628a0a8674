"""Hosts that are really apart, as Linux network namespaces: own addresses, names, processes, /dev/shm and /tmp/ray.

A switch (a bridge in a namespace of its own) joins them. Nothing of it is visible to the machine's own network.
Each host's name resolves to 127.0.1.1 there, as Debian and Ubuntu set it up. All of it needs root and programs of
iproute2 and util-linux: `why_not` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
from tests.conftest import ROOT

_PREFIX = "cfhost"
_NETWORK = "198.18.0"
"""Three bytes of the hosts' addresses, in the block for tests of network devices (RFC 2544)."""
_GATEWAY = f"{_NETWORK}.1"
_HANG = 120
"""Seconds that only a hang takes, on a loaded machine too."""

# The first process of a host. It reaps what others leave behind, as an init does.
_INIT = """
set -e
hostname "$1"
mount --make-rprivate /
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs -o size=2g tmpfs /tmp/ray
ip link set lo up
echo ready
while :; do sleep 3600 & wait; done
"""


@cache
def why_not() -> str | None:
    """Return why this machine can make no hosts, in words, or None if it can."""
    if sys.platform != "linux":
        return f"hosts are network namespaces of Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "network namespaces need root, and this is an ordinary user"
    missing = [name for name in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing: tests/cluster/install installs them (iproute2, util-linux)"
    probe = f"{_PREFIX}-{os.getpid()}-try"
    tries = [
        ["ip", "netns", "add", probe],
        ["ip", "-n", probe, "link", "add", "br0", "type", "bridge"],
        ["ip", "-n", probe, "link", "add", "v-try", "type", "veth", "peer", "name", "w-try"],
        ["ip", "netns", "exec", probe, "unshare", "-m", "-u", "-p", "-f", "--mount-proc", "true"],
    ]
    try:
        for command in tries:
            tried = subprocess.run(command, capture_output=True, text=True)
            if tried.returncode:
                return f"this machine makes no network namespaces: {' '.join(command)}: {tried.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    return None


class Host:
    """One host: its first process holds its namespaces, and everything that runs on it ends with that process."""

    def __init__(self, switch: Switch, name: str, number: int) -> None:
        self.name, self.address = name, f"{_NETWORK}.{number}"
        self.folder = switch.folder / f"{name}-{number}"
        self.user_home = self.folder / "home"
        self._switch, self._number = switch, number
        self._net, self._port = f"{switch.prefix}-{number}", f"v-{number}"
        self._delay: subprocess.Popen[str] | None = None
        self.user_home.mkdir(parents=True)
        names = f"127.0.0.1 localhost\n127.0.1.1 {name}\n"
        (self.folder / "hosts").write_text(names)
        self._plug_in()
        self._boot()

    def _plug_in(self) -> None:
        switch = self._switch.net
        ip("netns", "add", self._net)
        ip("-n", switch, "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._net)
        ip("-n", switch, "link", "set", self._port, "master", "br0", "up")
        ip("-n", self._net, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self._net, "link", "set", "eth0", "up")
        # Programs find their own address by asking for the way to somewhere.
        ip("-n", self._net, "route", "add", "default", "via", _GATEWAY)

    def _boot(self) -> None:
        Path("/tmp/ray").mkdir(exist_ok=True)  # a place to mount on
        namespaces = ["unshare", "-m", "-u", "-p", "-f", "--mount-proc", "--kill-child"]
        init = ["sh", "-c", _INIT, "init", self.name, str(self.folder)]
        self._holder = subprocess.Popen(
            [*_in_network(self._net), *namespaces, *init],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", f"host {self.name} did not start"
        [self._init] = [child.pid for child in psutil.Process(self._holder.pid).children()]

    def _inside(self, command: Sequence[str | Path]) -> list[str]:
        enter = ["nsenter", "--target", str(self._init), "--mount", "--uts", "--pid", "--net"]
        return [*enter, f"--wd={ROOT}", "--", *map(str, command)]

    def environment(self, changes: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a user who has logged in to this host."""
        plain = {
            "HOME": str(self.user_home),
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("platform", "models")),
            "PYTHONUNBUFFERED": "1",
        }
        return {**plain, **changes}

    def run(
        self, *command: str | Path, seconds: float = _HANG, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end. With `check` its status must be 0."""
        done = subprocess.run(
            self._inside(command),
            env=self.environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, f"{self.name}: {command}: {done.stdout}{done.stderr}"
        return done

    def start(self, *command: str | Path, log: Path, **environment: str) -> Process:
        """Start a command on this host, with its output in a file."""
        with log.open("a") as file:
            started = subprocess.Popen(
                self._inside(command),
                env=self.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        return Process(started, log)

    def mount(self, source: Path, at: Path) -> None:
        """Show a file or folder at another path on this host alone."""
        self.run("mount", "--bind", source, at)

    def cut(self) -> None:
        """Take this host off the network. Whatever runs on it goes on, and reaches nobody."""
        ip("-n", self._switch.net, "link", "set", self._port, "down")

    def restore(self) -> None:
        """Undo `cut`."""
        ip("-n", self._switch.net, "link", "set", self._port, "up")

    def isolate(self, *others: Host) -> None:
        """Undo `cut`, but let this host and the given ones reach each other alone: a partition of the network.

        The switch gets a second bridge for them.
        """
        number = len(self._switch.bridges)
        bridge = f"br{number}"
        self._switch.bridges.append(bridge)
        ip("-n", self._switch.net, "link", "add", bridge, "type", "bridge")
        ip("-n", self._switch.net, "link", "set", bridge, "up")
        for host in (self, *others):
            ip("-n", self._switch.net, "link", "set", host._port, "master", bridge, "up")

    def rejoin(self) -> None:
        """Undo `isolate`, and `cut`, for this host."""
        ip("-n", self._switch.net, "link", "set", self._port, "master", "br0", "up")

    def delay(self, seconds: float) -> None:
        """Let every frame from and to this host take longer, by a process between it and the switch.

        Not every kernel has `tc netem`, which does the same.
        """
        assert self._delay is None
        net, near, far = self._switch.net, f"d-{self._number}", f"e-{self._number}"
        ip("-n", net, "link", "add", near, "type", "veth", "peer", "name", far)
        ip("-n", net, "link", "set", near, "up")
        ip("-n", net, "link", "set", far, "master", "br0", "up")
        ip("-n", net, "link", "set", self._port, "nomaster")
        script = Path(__file__).with_name("delayed_link.py")
        self._delay = subprocess.Popen(
            [*_in_network(net), sys.executable, str(script), self._port, near, str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._delay.stdout is not None
        assert self._delay.stdout.readline() == "ready\n"

    def undo_delay(self) -> None:
        """Let frames pass at once again."""
        assert self._delay is not None
        end(self._delay)
        self._delay = None
        ip("-n", self._switch.net, "link", "delete", f"d-{self._number}")
        ip("-n", self._switch.net, "link", "set", self._port, "master", "br0")

    def mend(self, *, keep_delay: bool = False) -> None:
        """Undo whatever was done to this host. One that was switched off is switched on."""
        if self._holder.poll() is not None:
            self._boot()
        if self._delay is None:
            self.rejoin()
        elif keep_delay:
            self.restore()
        else:
            self.undo_delay()
            self.rejoin()

    def kill(self) -> None:
        """Switch this host off: every process of it ends at once, and it is off the network."""
        end(self._holder)
        self.cut()

    def boot(self) -> None:
        """Switch this host on again after `kill`."""
        self._boot()
        self.restore()

    def remove(self) -> None:
        """Remove whatever makes this host."""
        end(self._holder)
        if self._delay is not None:
            end(self._delay)
        subprocess.run(["ip", "netns", "delete", self._net], capture_output=True)


class Process:
    """A command that runs on a host."""

    def __init__(self, started: subprocess.Popen[bytes], log: Path) -> None:
        self._started, self.log = started, log

    @property
    def status(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._started.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command, and not to the process that entered the host for it."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._started.pid).children():
                child.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Return the exit status when it has ended. A hang kills it and fails."""
        try:
            return self._started.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {seconds} s:\n{self.said()}") from None

    def end(self) -> None:
        """Kill the command, if it still runs, with all the processes that it has started itself."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._started.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        end(self._started)

    def said(self) -> str:
        """Return its output so far."""
        return self.log.read_text(errors="replace")


class Switch:
    """What joins the hosts of a test: a bridge in a network namespace of its own."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"{_PREFIX}-{os.getpid()}"
        self.net, self.folder = f"{self.prefix}-switch", folder
        self.bridges = ["br0"]
        self.hosts: list[Host] = []
        ip("netns", "add", self.net)
        ip("-n", self.net, "link", "add", "br0", "type", "bridge")
        ip("-n", self.net, "address", "add", f"{_GATEWAY}/24", "dev", "br0")
        ip("-n", self.net, "link", "set", "br0", "up")

    def host(self, name: str) -> Host:
        """Return a new host of this name. Hosts of different tests may have one name."""
        made = Host(self, name, 11 + len(self.hosts))
        self.hosts.append(made)
        return made

    def remove(self) -> None:
        """End all processes of all hosts, and remove their namespaces."""
        for host in self.hosts:
            host.remove()
        subprocess.run(["ip", "netns", "delete", self.net], capture_output=True)


@contextmanager
def switch(folder: Path) -> Iterator[Switch]:
    """A switch without hosts. Hosts are removed at the end, and so are those that killed tests have left."""
    _remove_leftovers()
    made = Switch(folder)
    try:
        yield made
    finally:
        made.remove()


def _remove_leftovers() -> None:
    """Remove the network namespaces of tests whose process is gone. Their processes have ended with it."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*"):
        owner = path.name.split("-")[1]
        if not (owner.isdigit() and psutil.pid_exists(int(owner))):
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True)


def _in_network(name: str) -> list[str]:
    """Return the beginning of a command that runs in a network namespace, and ends when this process does."""
    return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{name}"]


def ip(*arguments: str) -> None:
    """Run `ip` of iproute2."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for its end."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def until(condition: Callable[[], bool], say: Callable[[], str], seconds: float = _HANG) -> None:
    """Wait until something has happened; the limit is one that only a hang reaches."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)
