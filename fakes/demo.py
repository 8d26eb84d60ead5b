"""Show the whole job, from usage events to invoices, over real HTTP without any account."""

import argparse
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from fakes.counting import make_meter, send_counted
from fakes.openmeter_store import DEFAULT_METER
from fakes.processes import ROOT, Failed, Process, Processes, call, wait_for

ACACIA, ENDIVE = "2025-02-24.acacia", "2026-10-28.endive"
HOUR = 3_600
DIFFERENT = 3  # the exit status of a dry run that found a difference
EXECUTIONS = [4, 3, 2, 1]
SETUP_LINE = re.compile(r"Stripe ([\w ]+) (?:created|already there): https?://\S+/(\w+)")
REPORT_LINE = re.compile(r"stripe_customer: .* UTC$", re.M)
MISSED_LINE = re.compile(r"WARNING: .* a reset ended .*$", re.M)


def main(argv: list[str] | None = None) -> None:
    """Run the demo; any step that goes wrong ends it with exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openmeter", default="", help="the URL of one that runs, for a stand-in")
    url = parser.parse_args(argv).openmeter.rstrip("/")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        with Processes(url) as processes:
            service = processes.start_service(api_version=ACACIA)
            print(f"Stand-in of Stripe     {processes.stripe}")
            print(f"{'OpenMeter' if url else 'Stand-in of OpenMeter':22} {processes.openmeter}")
            print(f"This service           {processes.service}")
            if url:
                begin_with_new_customers(processes)
            usage_records(processes, service)
            billing_meter(processes, service)
            if not url:  # no other goes down when it is told to
                what_was_missed(processes, service)
    except Failed as error:
        sys.exit(f"The demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def begin_with_new_customers(processes: Processes) -> None:
    """Make the meter in an OpenMeter that runs, and customers of whom it knows no usage."""
    make_meter(processes.openmeter, DEFAULT_METER)
    call("POST", f"{processes.stripe}/_fake/ids", {"first": int(time.time()) * 100})


def usage_records(processes: Processes, service: Process) -> None:
    """Bill usage records at a reset."""
    print("\nUSAGE RECORDS\n\n1. Seed Stripe: python setup_stripe.py --meter m1\n")
    ids = seed(processes)
    path = f"/v1/subscriptions/{ids['subscription']}"
    start = processes.stripe_call("GET", path, "", ACACIA)["current_period_start"]

    print("\n2. Use the product: four executions, 10 units in all, go to OpenMeter")
    for n, duration in enumerate(EXECUTIONS, start=1):
        use(processes, ids["customer"], f"execution-{n}", start, duration)

    print("\n3. Look at what a report would change: flask report --dry-run\n")
    flask(processes, DIFFERENT, "report", "--dry-run")

    print("\n4. Update the subscription: Stripe tells the service, which reports\n")
    print(*reports(processes, service, path, "metadata[plan]=demo", ["10.000000"]), sep="\n")

    print("\n5. Look again\n")
    flask(processes, 0, "report", "--dry-run")

    print("\n6. Reset the billing cycle: Stripe invoices what was reported\n")
    reports(processes, service, path, "billing_cycle_anchor=now", ["0.000000"])
    print(invoice(processes, ids["subscription"], 10))


def billing_meter(processes: Processes, service: Process) -> None:
    """Bill a Billing Meter over a renewal."""
    call("POST", f"{processes.stripe}/_fake/webhook", {"api_version": ENDIVE})
    print(
        "\nBILLING METER\n\n7. Seed Stripe: python setup_stripe.py --billing meter --test-clock\n"
    )
    ids = seed(processes, "--billing", "meter", "--test-clock")
    path = f"/v1/subscriptions/{ids['subscription']}"
    renewal = period_end(processes, path)
    last_window = renewal - renewal % HOUR

    print("\n8. Use the product: 7 units before the window of the renewal begins, then 3")
    use(processes, ids["customer"], "before", last_window - 1, 7)
    use(processes, ids["customer"], "after", last_window, 3)

    print(
        "\n9. Advance over the renewal: the service closes the period, then reports the new one\n"
    )
    clock = f"/v1/test_helpers/test_clocks/{ids['test clock']}/advance"
    said = ["3.000000", "7.000000", "7.000000"]
    print(*reports(processes, service, clock, f"frozen_time={renewal + 60}", said), sep="\n")

    print("\n10. Advance past the draft hour, and over the next renewal\n")
    processes.stripe_call("POST", clock, f"frozen_time={renewal + 3 * HOUR}")
    print(invoice(processes, ids["subscription"], 7))
    next_renewal = period_end(processes, path)
    said = ["0.000000", "3.000000", "3.000000"]
    reports(processes, service, clock, f"frozen_time={next_renewal + 60}", said)
    processes.stripe_call("POST", clock, f"frozen_time={next_renewal + 3 * HOUR}")
    print(invoice(processes, ids["subscription"], 3))


def what_was_missed(processes: Processes, service: Process) -> None:
    """Find what an invoice misses that was made while OpenMeter was down, and bill it."""
    print("\nWHAT WAS MISSED\n\n11. Seed Stripe, as before\n")
    ids = seed(processes, "--billing", "meter", "--test-clock")
    subscription = ids["subscription"]
    path = f"/v1/subscriptions/{subscription}"
    start = period_end(processes, path, "start")
    clock = f"/v1/test_helpers/test_clocks/{ids['test clock']}/advance"
    reset_at = start + 24 * HOUR
    processes.stripe_call("POST", clock, f"frozen_time={reset_at}")

    print("\n12. Use the product: 10 units; then OpenMeter answers no query any more")
    use(processes, ids["customer"], "missed", start, 10)
    faults = f"{processes.openmeter}/_fake/faults"
    call("POST", faults, {"path": "/query", "status": 503, "times": 1_000})

    print("\n13. Reset the billing cycle: no report gets through, and Stripe invoices nothing\n")
    before, known = len(processes.deliveries(0)), len(service.printed())
    form = "billing_cycle_anchor=now&proration_behavior=always_invoice"
    processes.stripe_call("POST", path, form, ENDIVE)
    wait_for(lambda: "failed 1" in service.printed()[known:], "a failed delivery", 30)
    print(invoice(processes, subscription, 0))

    print(
        "\n14. OpenMeter is back, Stripe sends its event again, and the service says what is lost\n"
    )
    call("DELETE", faults)
    if processes.deliveries(before + 2)[-1]["status"] != HTTPStatus.OK:
        raise Failed("the event that was sent again was not taken")
    print(*MISSED_LINE.findall(service.printed()[known:]), sep="\n")

    # The test clock is ahead of the time until which invoices are compared otherwise.
    until = datetime.fromtimestamp(reset_at + 24 * HOUR, UTC).strftime("%Y-%m-%d")
    audit = ["audit", "--subscription", subscription, "--until", until]
    print(f"\n15. Compare invoices with OpenMeter: flask {' '.join(audit)}\n")
    flask(processes, DIFFERENT, *audit)

    print("\n16. Bill it: flask audit --repair --yes\n")
    flask(processes, 0, *audit, "--repair", "--yes")

    print("\n17. Look again, after flask audit --repair\n")
    flask(processes, 0, *audit)


def seed(processes: Processes, *options: str) -> dict[str, str]:
    """Run the script, show what it prints and return the ids by kind."""
    printed = processes.seed(*options)
    print(printed, end="", flush=True)
    ids = dict(SETUP_LINE.findall(printed))
    if not {"product", "price", "customer", "subscription"} <= set(ids):
        raise Failed(f"setup_stripe.py did not say what it made: {printed}")
    return ids


def flask(processes: Processes, status: int, *command: str) -> None:
    """Run a command, show what it prints and check its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", *command],
        cwd=ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    if done.returncode != status:
        raise Failed(f"flask {command[0]} ended with {done.returncode}: {done.stderr}")


def use(processes: Processes, customer: str, name: str, at: int, duration: int) -> None:
    """Send the CloudEvent of one execution."""
    event = {
        "specversion": "1.0",
        "id": f"{customer}-{name}",
        "source": "demo",
        "type": "execution",
        "subject": customer,
        "time": datetime.fromtimestamp(at, UTC).isoformat(),
        "data": {"duration": duration},
    }
    send_counted(processes.openmeter, [event])


def reports(
    processes: Processes, service: Process, path: str, form: str, totals: list[str]
) -> list[str]:
    """Call Stripe and return the lines that the service logs, once its events are taken."""
    before, known = len(processes.deliveries(0)), len(service.printed())
    version = ENDIVE if "test_clocks" in path else ACACIA
    processes.stripe_call("POST", path, form, version)
    deliveries = {done["event"]: done for done in processes.deliveries(before + 1)[before:]}
    for done in deliveries.values():
        if done["status"] != 200:
            raise Failed(f"the webhook answered {done['status']}: {done['answer']}")
    lines = sorted(REPORT_LINE.findall(service.printed()[known:]), key=lambda line: line[-70:])
    found = sorted(re.findall(r"total_usage: (\S+),", "\n".join(lines)))
    if found != totals:
        raise Failed(f"the service reported {found} instead of {totals}")
    return list(dict.fromkeys(lines))


def period_end(processes: Processes, path: str, boundary: str = "end") -> int:
    """Return the end of a subscription's running period, or its start."""
    found = processes.stripe_call("GET", path, "", ACACIA)
    return int(found[f"current_period_{boundary}"])


def invoice(processes: Processes, subscription: str, units: int) -> str:
    """Return what the newest final invoice says, if it is over the units."""
    path = f"/v1/invoices?subscription={subscription}"
    listed: list[dict[str, Any]] = processes.stripe_call("GET", path, "", ACACIA)["data"]
    found = [invoice for invoice in listed if invoice["status"] != "draft"]
    lines = [(line["quantity"], line["amount"]) for line in found[0]["lines"]["data"]]
    if lines != [(units, 10 * units)] or found[0]["total"] != 10 * units:
        raise Failed(f"the invoice is not over {units} units: {found}")
    dollars, cents = divmod(found[0]["total"], 100)
    return f"Invoice {found[0]['id']}: {units} units, ${dollars}.{cents:02d}"


if __name__ == "__main__":
    main()
