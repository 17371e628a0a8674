"""What went wrong at the bottom of an error that came through Ray."""

from __future__ import annotations

from ..config.errors import UserError

# Ray Data writes advice of its own below the message of whatever a task raises.
_RAY_DATA_ADDS = "\nFailed to apply UDF transform"


def user_error_in(error: BaseException) -> UserError | None:
    """Return the fault that the user can mend among an error's causes, as it was raised, or None.

    Ray Train keeps the errors of its workers in `worker_failures`, each with a `_base_exc`; Ray wraps what a task
    or an actor raises, as often as it passes through one, and keeps the original as `cause`.
    """
    pending, seen = [error], set()
    while pending:
        error = pending.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        if type(error) is UserError:
            return UserError(str(error).partition(_RAY_DATA_ADDS)[0])
        causes = [getattr(error, name, None) for name in ("cause", "_base_exc", "__cause__", "__context__")]
        causes += list(getattr(error, "worker_failures", {}).values())
        pending += [cause for cause in causes if isinstance(cause, BaseException)]
    return None
