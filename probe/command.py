"""The probe's command: what it asks, makes, prints and leaves."""

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import stripe

from billing.commands import BUSY_SECONDS, DIFFERENT, FAILED, INTERRUPTED
from billing.stripe_api import NotReported, StripeConnection
from billing.tables import many
from billing.ways import USAGE_RECORD_VERSION
from probe import changes, endings, meter_events, records, telling
from probe.questions import Finding, NotFoundOut, Question, settle_on, without_ids
from probe.sandbox import Experiment, Sandbox, remove_all
from probe.table import UNKNOWN, rows, summary
from service.clients import create_stripe_client
from service.rates import Rates
from service.settings import StartupExit, load_environment, read_settings

TEST_KEY = re.compile(r"(sk|rk)_test_.+")
# Of a question: two or three turns of a test clock, and what has to be counted between them.
MINUTES_EACH = 2
PATIENCE = 600
# What reading an answer of another shape than Stripe's can raise.
ODD_ANSWER = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
EXPERIMENTS: dict[str, tuple[Question, Experiment]] = {
    question.name: (question, experiment)
    for room in (meter_events, changes, endings, records, telling)
    for question, experiment in room.EXPERIMENTS
}
NOTE = """It makes test clocks, customers, subscriptions, Billing Meters, prices and a
product, all named om_probe, in the sandbox of STRIPE_KEY, and removes them at the
end. Let one run at a time, for each removes what others left."""


def main(argv: list[str] | None = None) -> None:
    """Ask the questions and print the answers; end with 0, or with 1 if one was not found out.

    3 if the service differs from an answer, 130 after Ctrl-C.
    """
    options = parse_options(argv)
    account = connect()
    names = options.only or list(EXPERIMENTS)
    tell(f"{NOTE}\n{many(len(names), 'question')}, about {len(names) * MINUTES_EACH} minutes.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    remove_leftovers(account, options.patience)
    findings: list[Finding] = []
    status = 0
    try:
        for finding in ask_all(account, names, options.patience):
            findings.append(finding)
    except KeyboardInterrupt:
        tell("Interrupted.")
        status = INTERRUPTED
    finally:
        is_clean = options.keep or leave_nothing(account, options.patience)
    write(findings, options.json)
    sys.exit(status or exit_status(findings, is_clean=is_clean))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Return `only`, `json`, `keep` and `patience`."""
    parser = argparse.ArgumentParser(
        prog="python -m probe",
        description="Find out on a sandbox what Stripe's documents leave open.",
        epilog=NOTE,
    )
    add = parser.add_argument
    add("--only", action="append", choices=list(EXPERIMENTS), help="ask this; may be repeated")
    what = "print JSON, or write it to a file"
    add("--json", nargs="?", const="-", type=file_to_write, metavar="FILE", help=what)
    add("--keep", action="store_true", help="leave what was made; the next run removes it")
    add("--patience", type=seconds, default=PATIENCE, metavar="SECONDS", help="wait so long (600)")
    return parser.parse_args(argv)


def seconds(text: str) -> float:
    """Accept a number of seconds above zero."""
    found = float(text)
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return found


def file_to_write(given: str) -> str:
    """Accept a file that can be written to, for it is written an hour later."""
    path = Path(given)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{given!r} cannot be written to")
    return given


def connect() -> StripeConnection:
    """Return the connection to the sandbox, or end before any call if the key is no test key."""
    try:
        settings = read_settings(load_environment(), serves=False)
    except StartupExit:  # which has said why
        sys.exit(FAILED)
    if not TEST_KEY.fullmatch(settings["STRIPE_KEY"]):
        sys.exit("STRIPE_KEY is no test key (sk_test_..., rk_test_...): the probe takes no other.")
    client = create_stripe_client(settings)
    rates = Rates(settings["STRIPE_RATE_SHARE"], is_command=True)
    return StripeConnection(
        client, settings["USAGE_ROUNDING"], busy_seconds=BUSY_SECONDS, rates=rates
    )


def ask_all(account: StripeConnection, names: list[str], patience: float) -> Iterator[Finding]:
    """Yield what comes of each question, and tell how far it is."""
    run = f"{int(time.time()):x}"
    sandbox = Sandbox(account, run, patience)
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} ...", end=" ", file=sys.stderr, flush=True)
        finding = ask(sandbox, *EXPERIMENTS[name])
        tell(f"{finding.answer or UNKNOWN} ({finding.seconds:.0f} s)")
        yield finding


def ask(sandbox: Sandbox, question: Question, experiment: Experiment) -> Finding:
    """Return what comes of a question: an answer only if there is no doubt about it."""
    began, key, seen = time.monotonic(), None, ""
    try:
        key, seen = settle_on(question, experiment(sandbox))
    except (NotFoundOut, NotReported) as error:
        seen = str(error)
    except ODD_ANSWER as error:
        seen = f"Stripe's answer has another shape than was expected ({type(error).__name__})"
    return Finding(question, key, without_ids(seen), time.monotonic() - began)


def remove(account: StripeConnection, patience: float, what: str) -> None:
    """Remove what is there of the probe's. Raises NotFoundOut."""
    count = remove_all(account, patience)
    if count:
        tell(f"Removed what {what}: {count} test clocks, products and meters.")


def remove_leftovers(account: StripeConnection, patience: float) -> None:
    """Remove what an earlier run left, or end."""
    try:
        remove(account, patience, "an earlier run left")
    except (NotFoundOut, *ODD_ANSWER) as error:
        sys.exit(f"What an earlier run left cannot be removed: {without_ids(str(error))}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def leave_nothing(account: StripeConnection, patience: float) -> bool:
    """Remove what this run made, and say whether that was done; if not, what is to do."""
    try:
        remove(account, patience, "this run made")
    except (NotFoundOut, *ODD_ANSWER) as error:
        tell(f"Not all was removed: {without_ids(str(error))}. The next run tries it again.")
        return False
    except KeyboardInterrupt:
        tell("Not all was removed: interrupted. The next run removes it.")
        return False
    return True


def write(findings: list[Finding], json_to: str | None) -> None:
    """Print the table, or JSON, or write that to a file; nothing in it names an account."""
    if json_to == "-":
        print(json.dumps(as_json(findings), indent=2))
        return
    for line in [*rows(findings), summary(findings)]:
        print(line)
    if json_to:
        Path(json_to).write_text(json.dumps(as_json(findings), indent=2) + "\n")


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings with what they hold for: the day and the API versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "api_version": stripe.api_version,
        "usage_record_version": USAGE_RECORD_VERSION,
        "answers": [finding.as_json() for finding in findings],
    }


def exit_status(findings: list[Finding], *, is_clean: bool) -> int:
    """Return the exit status of a run that came to its end."""
    agreed = {finding.agrees for finding in findings}
    if None in agreed or not is_clean:
        return FAILED
    return DIFFERENT if False in agreed else 0


def tell(text: str) -> None:
    """Say a line to whoever waits; what is printed for others goes elsewhere."""
    print(text, file=sys.stderr, flush=True)
