"""Stripe's limits as a budget in Redis, which the processes of several machines draw on."""

import time
from typing import NamedTuple

import redis
from pyrate_limiter import BucketFactory, Limiter, Rate, RateItem, RedisBucket
from pyrate_limiter.buckets.redis_bucket import LuaScript

from service.rates import SECOND_MS, acquire, window
from service.shared_redis import SharedRedis

# How long one delivery that waits holds up the commands (longer than its turn takes to come), how
# long a command's call is held up in all, and how often it looks.
WAITING_MS, HELD_UP_SECONDS, LOOK_SECONDS = 1_500, 30, 0.05
# What was taken is forgotten after some seconds, and the whole key when nobody takes any more.
TRIM_SECONDS, KEPT_SECONDS = 1, 60
# To ask what time it is and to take a turn are two calls, between which another process may have
# taken one of a later time: then it is that late now, unless the clock of Redis was set back.
NO_EARLIER = """
local ARGV = {unpack(ARGV)}
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
local later = last and tonumber(last) - tonumber(ARGV[1])
if later and later > 0 and later < 1000 then
    ARGV[1] = last
end
"""


class Bucket(RedisBucket):
    """What all took in the last second or so, by the clock of Redis."""

    redis: redis.Redis
    trimmed_at = 0.0

    def put(self, item: RateItem) -> bool:
        """Take a turn if there is one. Raises RedisError."""
        # The limiter adds up how long it meant to sleep, which is less than it takes: the next one
        # would go too soon after one that waited.
        second, microsecond = self.redis.time()
        item.timestamp = second * 1_000 + microsecond // 1_000
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
        """Return what has to have room for a turn, the shortest first."""
        if not self.distance:
            return [window(self.per_second)]
        # What taking a turn takes comes on top of the distance.
        apart = Rate(1, int(self.distance * SECOND_MS))
        whole = window(1 / self.distance)
        return [apart, whole] if whole.limit > 1 else [whole]


class RedisBudget(BucketFactory):
    """The turns that all processes of an account take, by the clock of their Redis."""

    def __init__(self, shared: SharedRedis) -> None:
        self.shared = shared
        self.asked: dict[str, Asked] = {}
        self.buckets: dict[str, Bucket] = {}
        self.limiter = Limiter(self, buffer_ms=1)

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        """Return a turn, whose time comes when it is taken. Raises RedisError."""
        if self.is_gone():  # for those that waited while it was found out
            raise redis.ConnectionError
        return RateItem(name, 0, weight)

    def get(self, item: RateItem) -> Bucket:
        """Return the bucket of a limit. Raises RedisError."""
        if item.name not in self.buckets:
            asked = self.asked[item.name]
            key, rates = self.shared.key(asked.name), asked.rates()
            script = self.shared.client.script_load(NO_EARLIER + LuaScript.PUT_ITEM)
            self.buckets[item.name] = Bucket(rates, self.shared.client, key, script)
        return self.buckets[item.name]

    def take(self, name: str, per_second: float, seconds: float, distance: float) -> bool | None:
        """Take a turn within so many seconds; say whether there was one, None if it is gone.

        `distance` is how many seconds have to lie between it and the last one of all processes.
        """
        at_distance = f"{name}, {distance} s apart"
        self.asked[at_distance] = Asked(name, per_second, distance)
        taken = self.shared.ask(lambda _: acquire(self.limiter, at_distance, seconds))
        if taken is None:
            self.buckets.clear()  # one that comes back may have forgotten all
        return taken

    def tell_waiting(self, name: str) -> None:
        """Let the commands know that a delivery waits for a turn of this name."""
        self.shared.ask(lambda client: client.set(self.waiting_key(name), 1, px=WAITING_MS))

    def let_deliveries_pass(self, name: str) -> None:
        """Wait, for a while, until no delivery waits for a turn of this name."""
        until = time.monotonic() + HELD_UP_SECONDS
        while self.shared.ask(lambda client: client.exists(self.waiting_key(name))):
            if time.monotonic() > until:
                return
            time.sleep(LOOK_SECONDS)

    def waiting_key(self, name: str) -> str:
        """Return the key that is there while a delivery waits."""
        return self.shared.key(name, "waiting")

    def is_gone(self) -> bool:
        """Say whether Redis did not answer just now."""
        return self.shared.is_gone()
