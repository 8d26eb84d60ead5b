"""A Redis of the tests' own, and gunicorn's workers."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
import redis

from fakes.processes import Process, wait_for
from service.shared_redis import SharedRedis
from tests.conftest import free_port

PASSWORD = "hunter-77"


def pids(service: Process, event: str) -> list[int]:
    """Return the workers of which gunicorn has logged an event, the first one first."""
    return [int(pid) for pid in re.findall(rf"{event} \(?(?:with )?pid: (\d+)", service.printed())]


def wait_for_workers(service: Process, count: int, event: str) -> list[int]:
    """Return the workers of which gunicorn has logged an event, once they are so many."""
    wait_for(lambda: len(pids(service, event)) == count, f"{event}, {count}", 15)
    return pids(service, event)


class RedisServer:
    """A Redis of its own, with a password, which can be stopped, halted and started again."""

    def __init__(self, command: str) -> None:
        self.command, self.port = command, free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url)
        self.start()

    def start(self) -> None:
        listening = f"--bind 127.0.0.1 --port {self.port} --requirepass {PASSWORD}"
        command = [self.command, *listening.split(), "--loglevel", "warning", "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.client.ping()
            except redis.RedisError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError("redis-server does not answer")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def halt(self) -> None:
        """Let it take connections, but answer nothing."""
        self.process.send_signal(signal.SIGSTOP)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """Start a Redis, and close what was opened to it at the end."""
    command = shutil.which("redis-server")
    if not command:
        pytest.skip("there is no redis-server: install it, on Debian redis-server")
    opened, made = [], SharedRedis.__init__

    def noted(shared: SharedRedis, url: str, prefix: str) -> None:
        made(shared, url, prefix)
        opened.append(shared)

    monkeypatch.setattr(SharedRedis, "__init__", noted)
    started = RedisServer(command)
    yield started
    for client in (started.client, *(each.client for each in opened)):
        client.close()
    started.stop()
