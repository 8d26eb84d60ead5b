"""How others learn what became of a command: figures for node_exporter, and a heartbeat."""

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import MULTIPLE_CHOICES, OK
from pathlib import Path

import requests
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import PREFIX
from service.transport import Connections

HEARTBEAT_ATTEMPTS = 2
LAST_SUCCESS = "last_success_timestamp_seconds"

log = logging.getLogger("app")


@dataclass(frozen=True)
class Figure:
    """A number of a run, what it is, and its labels, such as {"currency": "USD"}."""

    name: str
    about: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A run of a command that ended: its exit status, the accounts that it was for, its figures."""

    command: str
    status: int
    accounts: list[str]
    figures: list[Figure]


def tell_watchers(ended: Ended, path: str | None, heartbeat: str | None) -> None:
    """Write a run's figures to a file, and call its heartbeat, where there are such.

    What cannot be told is a warning: it changes nothing of the run.
    """
    if path:
        try:
            write_figures(ended, Path(path))
        except OSError as error:
            log.warning("--metrics %s could not be written: %s", path, error.strerror)
    if heartbeat:
        call_heartbeat(heartbeat if ended.status == 0 else f"{heartbeat}/fail")


def write_figures(ended: Ended, path: Path) -> None:
    """Write figures in Prometheus' text form, at once, so that nobody reads a part of them.

    The time of the last success stays when a run fails. Each has the label `accounts`, for
    node_exporter takes no two files with the same series. Raises OSError.
    """
    labels, now = {"accounts": ",".join(ended.accounts)}, time.time()
    success = now if ended.status == 0 else read_last_success(ended.command, labels, path)
    run = [
        Figure(LAST_SUCCESS, "When a run last ended with exit status 0", success),
        Figure("last_run_timestamp_seconds", "When a run last ended", now),
        Figure("exit_status", "How the last run ended", ended.status),
    ]
    registry = gauges(ended.command, labels, [*run, *ended.figures])
    write_to_textfile(str(path), registry)


def gauges(command: str, labels: Mapping[str, str], figures: Iterable[Figure]) -> CollectorRegistry:
    """Return figures as Prometheus' client has them."""
    registry, known = CollectorRegistry(), dict[str, Gauge]()
    for figure in figures:
        own = {**labels, **figure.labels}
        if figure.name not in known:
            name = f"{PREFIX}_{command}_{figure.name}"
            known[figure.name] = Gauge(name, figure.about, own, registry=registry)
        known[figure.name].labels(**own).set(figure.value)
    return registry


def read_last_success(command: str, labels: Mapping[str, str], path: Path) -> float:
    """Return the UTC second of the last success that a file tells of; 0 if it tells of none."""
    name = f"{PREFIX}_{command}_{LAST_SUCCESS}"
    try:
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0
    samples = [sample for family in families for sample in family.samples]
    found = [one.value for one in samples if one.name == name and one.labels == labels]
    return found[0] if found else 0


def call_heartbeat(url: str) -> None:
    """Call an address, once more if it fails; nothing of it is logged, for it is a secret."""
    reason = ""
    with closing(Connections(url)) as connections:
        for _ in range(HEARTBEAT_ATTEMPTS):
            try:
                status = connections.request("GET", url).status_code
            except requests.RequestException as error:
                reason = f"HEARTBEAT_URL did not answer ({type(error).__name__})"
            else:
                if OK <= status < MULTIPLE_CHOICES:
                    return
                reason = f"HEARTBEAT_URL answered {status}"
    log.warning(reason)
