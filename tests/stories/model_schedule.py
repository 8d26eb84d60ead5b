"""Threads of which one runs at a time, on a clock that moves only while all of them wait.

A task is a thread that gives the turn back at each `pause`, and waits there until it gets it
again. The choices, which task goes on and how many seconds a step takes, are those of `Chance`, so
that a history's numbers decide them. What waits in the service (locks, pools of threads, sleeps)
has its counterpart here, which waits by giving the turn back.

Between two pauses nothing else runs: what two threads do to one object without a call, a lock or
a sleep in between is not tried.
"""

import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any

# Real seconds in which a task that has the turn must give it back.
PATIENCE = 30


class Abandoned(BaseException):
    """Unwind a task whose history is over."""


@dataclass
class Chance:
    """Decide by numbers, up to `budget` times for other than the plain thing.

    The plain thing is to go on with the task that ran, at the same second, without a fault. How
    probable others are, is said for a pause: that another task goes on, that a step takes some
    seconds; and for a call: that it fails.
    """

    random: Random
    budget: int = 0
    switch: float = 0
    move: float = 0
    fault: float = 0

    def takes(self, probability: float) -> bool:
        """Say whether something happens that has a probability."""
        if self.budget <= 0 or not probability or self.random.random() >= probability:
            return False
        self.budget -= 1
        return True

    def seconds(self) -> int:
        """Return how many seconds a step takes: a few, and seldom many."""
        if not self.takes(self.move):
            return 0
        return (
            self.random.randint(9, 30) if self.random.random() < 0.05 else self.random.randint(1, 8)
        )


CALM = Chance(Random(0))


@dataclass(eq=False)
class Task:
    """A thread that runs when it has the turn; `host` is the process that it belongs to.

    It can go on once `until` says so, or at the second `wake` at the latest.
    """

    name: str
    host: Any
    call: Callable[[], object]
    turn: threading.Lock = field(default_factory=threading.Lock)
    until: Callable[[], bool] | None = None
    wake: float | None = None
    done: bool = False
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def can_go_on(self, now: float) -> bool:
        """Say whether it waits for nothing any more."""
        return self.until is None or self.until() or (self.wake is not None and self.wake <= now)


def where_it_is(task: Task) -> str:
    """Return the latest calls of a task."""
    number = task.thread.ident if task.thread else None
    frame = sys._current_frames().get(number or 0)
    return "".join(traceback.format_stack(frame)[-4:]) if frame else "its thread is gone"


def never() -> bool:
    """Wait for a second only."""
    return False


class Scheduler:
    """Give the turn to one task after the other.

    `now` tells the model's second, `move_to` lets time pass until a second; both run in the thread
    of the history, which has the turn whenever no task has.
    """

    def __init__(self, now: Callable[[], float], move_to: Callable[[float], None]) -> None:
        self.now, self.move_to = now, move_to
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.latest: Task | None = None
        self.back = threading.Lock()
        self.back.acquire()
        self.closed = False
        self.chance = CALM
        self.meanwhile: Callable[[], None] = lambda: None
        self.trace: list[str] = []

    # For the history

    def start(self, name: str, call: Callable[[], object], host: Any) -> Task:
        """Make a task; it begins when it first gets the turn."""
        task = Task(name, host, call)
        task.turn.acquire()
        task.thread = threading.Thread(target=self._work, args=(task,), daemon=True)
        self.tasks.append(task)
        task.thread.start()
        return task

    def run(self, chance: Chance = CALM, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let all tasks run to their ends, and something happen whenever time passes.

        Raises what one of them raised first.
        """
        self.chance, self.meanwhile = chance, meanwhile
        try:
            while self.tasks:
                self._step()
        finally:
            self.chance, self.latest = CALM, None

    def close(self) -> None:
        """Unwind what still runs."""
        self.closed = True
        for task in list(self.tasks):
            self._resume(task)

    def note(self, said: str) -> None:
        """Add a line to the trace, with the second and who has the turn."""
        name = self.current.name if self.current else "-"
        self.trace.append(f"{self.now():.3f} {name}: {said}")

    def _step(self) -> None:
        ready = [task for task in self.tasks if task.can_go_on(self.now())]
        if not ready:
            wakes = [task.wake for task in self.tasks if task.wake is not None]
            assert wakes, ("each task waits for another", [task.name for task in self.tasks])
            self._let_pass(min(wakes))
            return
        task = self.latest if self.latest in ready else ready[0]
        if len(ready) > 1 and self.chance.takes(self.chance.switch):
            task = self.chance.random.choice([other for other in ready if other is not task])
        assert task is not None
        self._resume(task)
        if task.error:
            raise task.error

    def _let_pass(self, second: float) -> None:
        self.move_to(second)
        self.meanwhile()

    def _resume(self, task: Task) -> None:
        task.until, task.wake = None, None
        self.current = self.latest = task
        task.turn.release()
        came_back = self.back.acquire(timeout=PATIENCE)
        self.current = None
        if not came_back:
            # What it waits for does not know of turns, and nobody can go on.
            self.tasks.clear()
            raise AssertionError(f"{task.name} keeps the turn: {where_it_is(task)}")
        if task.done:
            self.tasks.remove(task)

    def _work(self, task: Task) -> None:
        task.turn.acquire()
        try:
            if not self.closed:
                task.call()
        except Abandoned:
            pass
        except BaseException as error:
            task.error = error
        task.done = True
        self.back.release()

    # For what runs in tasks

    def pause(self, until: Callable[[], bool] | None = None, wake: float | None = None) -> None:
        """Give the turn back until something is so, or until a second; no more for the history.

        Without either this is a step of a call, which may take some seconds.
        """
        task = self.current
        if task is None:
            return
        if self.closed:
            raise Abandoned
        seconds = 0 if until else self.chance.seconds()
        if seconds:
            until, wake = never, self.now() + seconds
        task.until, task.wake = until, wake
        self.back.release()
        task.turn.acquire()
        if self.closed:
            raise Abandoned

    def wait_for(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until something is so, for some seconds at most, and say whether it is."""
        if not until():
            assert self.current, "the history would wait for itself"
            self.pause(until, None if seconds is None else self.now() + seconds)
        return until()

    def sleep(self, seconds: float) -> None:
        """Let a task sleep; the history sleeps by letting time pass."""
        if seconds <= 0:
            return
        if self.current is None:
            self.move_to(self.now() + seconds)
        else:
            self.pause(never, self.now() + seconds)


class TurnLock:
    """A lock that gives the turn back while another task has it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.is_held = scheduler, False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, or say that it could not be had in time."""
        self.scheduler.pause()
        if blocking:
            self.scheduler.wait_for(lambda: not self.is_held, None if timeout < 0 else timeout)
        taken = not self.is_held
        self.is_held = True
        return taken

    def release(self) -> None:
        """Give it back."""
        assert self.is_held
        self.is_held = False

    def locked(self) -> bool:
        """Say whether somebody has it."""
        return self.is_held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class TurnCondition:
    """A condition of the same kind; whoever waits is told by what it waits for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.lock = scheduler, TurnLock(scheduler)

    def __enter__(self) -> bool:
        return self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def wait_for(self, until: Callable[[], bool], timeout: float) -> bool:
        """Give it back until something is so, for some seconds at most, and say whether it is."""
        end = self.scheduler.now() + timeout
        while not until() and (left := end - self.scheduler.now()) > 0:
            self.lock.release()
            self.scheduler.wait_for(until, left)
            self.lock.acquire()
        return until()

    def notify_all(self) -> None:
        """Tell nobody."""


class TurnSemaphore:
    """A bounded semaphore of the same kind."""

    def __init__(self, scheduler: Scheduler, value: int) -> None:
        self.scheduler, self.left = scheduler, value

    def acquire(self) -> bool:
        """Take a place as soon as there is one."""
        self.scheduler.wait_for(lambda: self.left > 0)
        self.left -= 1
        return True

    def release(self) -> None:
        """Give a place back."""
        self.left += 1


class TurnFuture(Future[Any]):
    """A future whose result is waited for by giving the turn back."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self.scheduler = scheduler

    def result(self, timeout: float | None = None) -> Any:
        """Return the result."""
        self.scheduler.wait_for(self.done, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what was raised."""
        self.scheduler.wait_for(self.done, timeout)
        return super().exception(0)


class TurnPool(Executor):
    """A pool of threads, each call of which is a task of the process that submits it.

    As in a real one, no more run at the same time than it has threads, and the others wait in
    their order.
    """

    def __init__(self, scheduler: Scheduler, threads: int = 1, name: str = "pool") -> None:
        self.scheduler, self.threads, self.name = scheduler, threads, name
        self.waiting: list[TurnFuture] = []
        self.running = 0
        self.futures: list[TurnFuture] = []

    def submit(  # type: ignore[override]
        self, call: Callable[..., Any], *args: Any, **options: Any
    ) -> TurnFuture:
        """Let a task of its own make a call."""
        found, submitter = TurnFuture(self.scheduler), self.scheduler.current
        assert submitter, "only a task submits"
        self.waiting.append(found)
        self.futures.append(found)

        def has_turn() -> bool:
            return self.running < self.threads and self.waiting[0] is found

        def work() -> None:
            if not found.cancelled():
                self.scheduler.wait_for(lambda: found.cancelled() or has_turn())
            self.waiting.remove(found)
            if found.set_running_or_notify_cancel():
                self.running += 1
                try:
                    result = call(*args, **options)
                except Exception as error:
                    self.running -= 1
                    found.set_exception(error)
                else:
                    self.running -= 1
                    found.set_result(result)

        self.scheduler.start(
            f"{submitter.name}/{self.name}{len(self.futures)}", work, submitter.host
        )
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all calls, or let those not begun be."""
        if cancel_futures:
            for future in self.waiting:
                future.cancel()
        if wait and not self.scheduler.closed:
            self.scheduler.wait_for(lambda: all(future.done() for future in self.futures))


def turn_wait(
    scheduler: Scheduler, futures: Iterable[Future[Any]], timeout: float | None = None
) -> None:
    """Wait until all are done, for some seconds at most."""
    every = list(futures)
    scheduler.wait_for(lambda: all(future.done() for future in every), timeout)
