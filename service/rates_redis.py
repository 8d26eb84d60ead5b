"""Stripe's limits as a budget in Redis, which the processes of several machines draw on."""

import logging
import time
from typing import NamedTuple

import redis
from pyrate_limiter import BucketFactory, Limiter, Rate, RateItem, RedisBucket
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.rates import SECOND_MS, acquire, window

# Redis is near: one that takes longer is gone, and nobody asks it again for a while.
ANSWER_SECONDS, GONE_SECONDS = 0.5, 10
# How long one delivery that waits holds up the commands (longer than its turn takes to come), how
# long a command's call is held up in all, and how often it looks.
WAITING_MS, HELD_UP_SECONDS, LOOK_SECONDS = 1_500, 30, 0.05
# As in service/rates.py: what several processes let go together differs by more.
LONGER = 1.05
# What was taken is forgotten after some seconds, and the whole key when nobody takes any more.
TRIM_SECONDS, KEPT_SECONDS = 1, 60

log = logging.getLogger("app")


class Bucket(RedisBucket):
    """What all took in the last second or so."""

    trimmed_at = 0.0

    def put(self, item: RateItem) -> bool:
        """Take a turn if there is one. Raises RedisError."""
        taken = super().put(item) is True
        if time.monotonic() - self.trimmed_at > TRIM_SECONDS:
            self.trimmed_at = time.monotonic()
            self.leak(item.timestamp)
            self.redis.expire(self.bucket_key, KEPT_SECONDS)
        return taken


class Asked(NamedTuple):
    """Of which limit turns are asked for, its requests a second, and the seconds between two."""

    name: str
    per_second: float
    distance: float

    def rates(self) -> list[Rate]:
        """Return what has to have room for a turn."""
        distance = round(self.distance * SECOND_MS)
        apart = [Rate(1, distance)] if distance else []
        return [window(self.per_second, LONGER), *apart]


class RedisBudget(BucketFactory):
    """The turns that all processes of an account take, by the clock of their Redis.

    Where Redis does not answer, it is gone for some seconds, with a warning.
    """

    def __init__(self, url: str, account: str) -> None:
        self.client = redis.Redis.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self.prefix = f"openmeter-stripe:{account}"
        self.asked: dict[str, Asked] = {}
        self.buckets: dict[str, Bucket] = {}
        self.gone_until = 0.0
        self.limiter = Limiter(self, buffer_ms=1)

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        """Return a turn of now. Raises RedisError."""
        if self.is_gone():  # for those that waited while it was found out
            raise redis.ConnectionError
        second, microsecond = self.client.time()
        return RateItem(name, second * 1_000 + microsecond // 1_000, weight)

    def get(self, item: RateItem) -> Bucket:
        """Return the bucket of a limit. Raises RedisError."""
        if item.name not in self.buckets:
            asked = self.asked[item.name]
            key = f"{self.prefix}:{asked.name}"
            self.buckets[item.name] = Bucket.init(asked.rates(), self.client, key)
        return self.buckets[item.name]

    def take(self, name: str, per_second: float, seconds: float, distance: float) -> bool | None:
        """Take a turn within so many seconds; say whether there was one, None if it is gone.

        `distance` is how many seconds have to lie between it and the last one of all processes.
        """
        if self.is_gone():
            return None
        at_distance = f"{name}, {distance} s apart"
        self.asked[at_distance] = Asked(name, per_second, distance)
        try:
            return acquire(self.limiter, at_distance, seconds)
        except redis.RedisError as error:
            self.lose(error)
            return None

    def tell_waiting(self, name: str) -> None:
        """Let the commands know that a delivery waits for a turn of this name."""
        if self.is_gone():
            return
        try:
            self.client.set(self.waiting_key(name), 1, px=WAITING_MS)
        except redis.RedisError as error:
            self.lose(error)

    def let_deliveries_pass(self, name: str) -> None:
        """Wait, for a while, until no delivery waits for a turn of this name."""
        until = time.monotonic() + HELD_UP_SECONDS
        try:
            while not self.is_gone() and self.client.exists(self.waiting_key(name)):
                if time.monotonic() > until:
                    return
                time.sleep(LOOK_SECONDS)
        except redis.RedisError as error:
            self.lose(error)

    def waiting_key(self, name: str) -> str:
        """Return the key that is there while a delivery waits."""
        return f"{self.prefix}:{name}:waiting"

    def is_gone(self) -> bool:
        """Say whether it did not answer just now."""
        return time.monotonic() < self.gone_until

    def lose(self, error: redis.RedisError) -> None:
        """Do without it for a while; one that comes back may have forgotten all."""
        if not self.is_gone():
            log.warning(
                "RATE_LIMIT_REDIS does not answer (%s): each process takes its part alone",
                type(error).__name__,
            )
        self.gone_until = time.monotonic() + GONE_SECONDS
        self.buckets.clear()
