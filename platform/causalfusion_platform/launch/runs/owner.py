"""Owner of a run: another user's run is not continued by mistake."""

from __future__ import annotations

from ...config.commands import command
from ...config.errors import UserError
from ...config.owner import USER_VARIABLE, current_user
from ...tracking.lineage import user_tags
from .folder import RunFolder


def check_owner(run: RunFolder) -> None:
    """Check that a run is not another user's. One of an earlier version has no owner, and anybody may continue it.

    Raises:
        UserError: it is another user's.
    """
    user, owner = current_user(), run.state.user if run.state is not None else None
    if owner is None or user is None or owner == user:
        return
    raise UserError(
        f"run {run.name!r} in {run.storage.place} is of user {owner!r}, and you are {user!r} "
        f"({USER_VARIABLE}, or else the system's user)\n"
        f"  start one of your own: name=…; or keep all of yours apart: CAUSALFUSION_HOME=FOLDER\n"
        f"  to go on with this one: {command('runs', 'take-over', run.storage.place)}"
    )


def take_over(run: RunFolder) -> tuple[str | None, str]:
    """Make this process' user the owner of a run that is not under way. Return the old owner and the new one.

    Raises:
        UserError: the run does not exist or is under way, or the system has no name of the user.
    """
    user = current_user()
    if user is None:
        raise UserError(f"the system has no name of your user\n  give one: {USER_VARIABLE}=alice")
    _ = run.started
    with run.lock():
        owner = run.started.user
        if owner != user:
            run.keep(user=user)
            run.outbox.tags(user_tags(user))
    return owner, user
