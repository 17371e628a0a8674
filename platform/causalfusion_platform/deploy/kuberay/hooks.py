"""Commands that pods run before they end, so that a run writes a checkpoint first.

Kubernetes runs the hook, then sends SIGTERM to Ray, and kills after `deadlines.grace_seconds` altogether.
"""

from __future__ import annotations

from .documents import Tree

MARGIN_SECONDS = 10
"""Seconds for Ray's own end after the hook."""

# Drivers are processes of Python with causalfusion's program and a verb as their first arguments.
_DRIVERS = r"""
drivers() {
  for process in /proc/[0-9]*; do
    tr '\0' ' ' < "$process/cmdline" 2> /dev/null |
      grep -qE '^[^ ]*python[^ ]* ([^ ]*/causalfusion|-m causalfusion_platform) (train|sweep) ' &&
      echo "${process#/proc/}"
  done
}
for driver in $(drivers); do kill -TERM "$driver"; done
seconds=0
while [ -n "$(drivers)" ] && [ "$seconds" -lt SECONDS ]; do sleep 1; seconds=$((seconds + 1)); done
exit 0
""".lstrip()

# An idle worker of Ray is named ray::IDLE. Others still train, read or write.
_DRAIN = r"""
timeout 15 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is ending" \
  --deadline-remaining-seconds SECONDS
seconds=0
while grep -qsE '^ray::([^I]|I[^D])' /proc/[0-9]*/cmdline && [ "$seconds" -lt SECONDS ]; do
  sleep 1; seconds=$((seconds + 1))
done
exit 0
""".lstrip()


def stop_driver(grace_seconds: int) -> Tree:
    """Return the hook of the head: it stops the driver with SIGTERM, as Ctrl-C does, and waits for its end."""
    return _before_stop(_DRIVERS, grace_seconds)


def drain_node(grace_seconds: int) -> Tree:
    """Return the hook of a worker: it tells Ray that the node is being taken back, and waits for its processes."""
    return _before_stop(_DRAIN, grace_seconds)


def _before_stop(script: str, grace_seconds: int) -> Tree:
    seconds = max(grace_seconds - MARGIN_SECONDS, 1)
    command = ["/bin/sh", "-c", script.replace("SECONDS", str(seconds))]
    return {"preStop": {"exec": {"command": command}}}
