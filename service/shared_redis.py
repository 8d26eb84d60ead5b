"""The Redis of several machines: near, and done without while it does not answer."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# One that takes longer is gone, and nobody asks it again for a while.
ANSWER_SECONDS, GONE_SECONDS = 0.5, 10

Answer = TypeVar("Answer")

log = logging.getLogger("app")


class SharedRedis:
    """A Redis, in which all keys of ours begin with `prefix`.

    Where it does not answer, it is gone for some seconds, with a warning.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self.client = redis.Redis.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self.prefix = prefix
        self.gone_until = 0.0

    def key(self, *names: str) -> str:
        """Return our key of some names."""
        return ":".join([self.prefix, *names])

    def ask(self, question: Callable[[redis.Redis], Answer]) -> Answer | None:
        """Return what it answers to a question, or None while it is gone."""
        if self.is_gone():
            return None
        try:
            return question(self.client)
        except redis.RedisError as error:
            self.lose(error)
            return None

    def is_gone(self) -> bool:
        """Say whether it did not answer just now."""
        return time.monotonic() < self.gone_until

    def lose(self, error: redis.RedisError) -> None:
        """Do without it for a while."""
        if not self.is_gone():
            log.warning(
                "RATE_LIMIT_REDIS does not answer (%s): each process takes its part alone",
                type(error).__name__,
            )
        self.gone_until = time.monotonic() + GONE_SECONDS

    def note(self, name: str, seconds: int) -> bool:
        """Note a name for so many seconds, for all processes; say whether it is noted."""
        return self.ask(lambda client: client.set(self.key(name), 1, ex=seconds)) is True

    def take(self, name: str) -> bool:
        """Say whether a name is noted, to one of all who ask."""
        return self.ask(lambda client: client.delete(self.key(name))) == 1
