"""Show the whole job, from usage events to an invoice, over real HTTP without any account."""

import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from fakes.processes import ROOT, Failed, Process, Processes, call

ACACIA = "2025-02-24.acacia"
DURATIONS = [4, 3, 2, 1]
SETUP_LINE = re.compile(r"Stripe (\w+) created: https://dashboard\.stripe\.com/test/\w+/(\w+)")
REPORT_LINE = re.compile(r"^stripe_customer: .*, total_usage: 10\.000000, from: .* UTC$", re.M)


def main() -> None:
    """Run the demo; any step that goes wrong ends it with exit status 1."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        with Processes() as processes:
            demonstrate(processes)
    except Failed as error:
        sys.exit(f"The demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def demonstrate(processes: Processes) -> None:
    """Seed, use, report, invoice."""
    service = processes.start_service(api_version=ACACIA)
    print(f"Stand-in of Stripe     {processes.stripe}")
    print(f"Stand-in of OpenMeter  {processes.openmeter}")
    print(f"This service           {processes.service}")

    print("\n1. Seed Stripe: python setup_stripe.py --meter m1\n")
    ids = seed(processes)

    print("\n2. Use the product: four executions, 10 units in all, go to OpenMeter")
    send_usage(processes, ids)

    print("\n3. Update the subscription: Stripe tells the service, which reports\n")
    print(report_line(processes, service, ids["subscription"]))

    print("\n4. Reset the billing cycle: Stripe invoices what was reported\n")
    print(invoice_line(processes, ids["subscription"]))


def seed(processes: Processes) -> dict[str, str]:
    """Run the script, show what it prints and return the ids by kind."""
    done = subprocess.run(
        [sys.executable, "setup_stripe.py", "--meter", "m1"],
        cwd=ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    ids = dict(SETUP_LINE.findall(done.stdout))
    if done.returncode or set(ids) != {"product", "price", "customer", "subscription"}:
        raise Failed(f"setup_stripe.py ended with {done.returncode}: {done.stderr}")
    return ids


def send_usage(processes: Processes, ids: dict[str, str]) -> None:
    """Send one CloudEvent for each execution, in the subscription's first second."""
    path = f"/v1/subscriptions/{ids['subscription']}"
    start = processes.stripe_call("GET", path, "", ACACIA)["current_period_start"]
    events = [
        {
            "specversion": "1.0",
            "id": f"execution-{n}",
            "source": "demo",
            "type": "execution",
            "subject": ids["customer"],
            "time": datetime.fromtimestamp(start, UTC).isoformat(),
            "data": {"duration": duration},
        }
        for n, duration in enumerate(DURATIONS, start=1)
    ]
    call("POST", f"{processes.openmeter}/api/v1/events", events)


def report_line(processes: Processes, service: Process, subscription: str) -> str:
    """Update the subscription and return the line that the service logs."""
    update(processes, subscription, "metadata[plan]=demo")
    if match := REPORT_LINE.search(service.printed()):
        return match.group()
    raise Failed(f"the service did not report 10 units:\n{service.printed()}")


def update(processes: Processes, subscription: str, form: str) -> None:
    """Update the subscription and wait until the service has taken the event."""
    before = len(processes.deliveries(0))
    processes.stripe_call("POST", f"/v1/subscriptions/{subscription}", form, ACACIA)
    delivery = processes.deliveries(before + 1)[-1]
    if delivery["status"] != 200:
        raise Failed(f"the webhook answered {delivery['status']}: {delivery['answer']}")


def invoice_line(processes: Processes, subscription: str) -> str:
    """Reset the billing cycle and return what the invoice says."""
    update(processes, subscription, "billing_cycle_anchor=now")
    found = processes.stripe_call("GET", f"/v1/invoices?subscription={subscription}", "", ACACIA)
    invoice: dict[str, Any] = found["data"][0]
    line = invoice["lines"]["data"][0]
    if (line["quantity"], line["amount"], invoice["total"]) != (10, 100, 100):
        raise Failed(f"the invoice is not over 10 units and $1.00: {invoice}")
    path = f"/v1/subscription_items/{line['subscription_item']}/usage_record_summaries"
    running = processes.stripe_call("GET", path, "", ACACIA)["data"][0]["total_usage"]
    if running:
        raise Failed(f"{running} units were billed twice: they are in the new period, too")
    dollars, cents = divmod(invoice["total"], 100)
    return f"Invoice {invoice['id']}: {line['quantity']} units, ${dollars}.{cents:02d}"


if __name__ == "__main__":
    main()
