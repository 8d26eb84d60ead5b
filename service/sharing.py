"""What the processes of an account share, as the settings have it: a budget, and notes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.late import SharedNotes
from service.rates import SharedBudget
from service.settings import is_live
from service.shared_file import SharedFile

if TYPE_CHECKING:
    from service.shared_redis import SharedRedis


def shared_redis(settings: Mapping[str, Any]) -> "SharedRedis | None":
    """Return the Redis that several machines share, if they do."""
    if not settings["RATE_LIMIT_REDIS"]:
        return None
    # Its client takes six megabytes, which a worker without it need not have.
    from service.shared_redis import SharedRedis  # noqa: PLC0415

    mode = "live" if is_live(settings["STRIPE_KEY"]) else "test"
    return SharedRedis(settings["RATE_LIMIT_REDIS"], f"openmeter-stripe:{mode}")


def shared_budget(redis: "SharedRedis | None") -> SharedBudget | None:
    """Return the budget that several machines draw on, if they do."""
    if redis is None:
        return None
    from service.rates_redis import RedisBudget  # noqa: PLC0415

    return RedisBudget(redis)


def shared_notes(redis: "SharedRedis | None", folder: object) -> SharedNotes | None:
    """Return where several machines note things for each other, or the workers of this one."""
    if redis or not folder:
        return redis
    return SharedFile(Path(str(folder), "notes"))
