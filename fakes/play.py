"""Run both stand-ins and the service, seeded, for trying them on their pages by clicks."""

import argparse
import signal
import sys
import time

from fakes.demo import ENDIVE
from fakes.processes import Failed, Process, Processes, call
from fakes.serving import LOOPBACK

POLL_SECONDS = 0.2
SEEDS = [["--billing", "meter", "--test-clock"], []]


def main() -> None:
    """Run until it is interrupted, or with exit status 1 until one of the three ends."""
    options = stand_in_options(sys.argv[1:])
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        with Processes(options=options) as processes:
            service = start(processes)
            print("Stand-ins of Stripe and OpenMeter and this service run here; nothing is real.")
            print(f"Open {processes.stripe}/test/subscriptions")
            print("What the service logs comes below. Ctrl-C ends all of it.", flush=True)
            follow(processes, service)
    except Failed as error:
        sys.exit(f"This failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def stand_in_options(argv: list[str]) -> list[list[str]]:
    """Return the options of Stripe's stand-in and of OpenMeter's: free ports on loopback."""
    parser = argparse.ArgumentParser(description="Both stand-ins and the service, by clicks.")
    parser.add_argument("--host", default=LOOPBACK, help="where the stand-ins listen")
    parser.add_argument("--ports", nargs=2, default=["0", "0"], metavar=("STRIPE", "OPENMETER"))
    given = parser.parse_args(argv)
    return [["--host", given.host, "--port", port] for port in given.ports]


def start(processes: Processes) -> Process:
    """Start the service, seed Stripe with a subscription of each kind, and join the pages."""
    service = processes.start_service(api_version=ENDIVE)
    for options in SEEDS:
        processes.seed(*options)
    # A test clock stands still between two clicks. What Stripe does with two reports of one second
    # is unknown; here the second one counts, as a reader expects.
    call("POST", f"{processes.stripe}/_fake/readings", {"tie": "last"})
    processes.join_pages()
    processes.deliveries(0)  # so that nothing of the seeding is logged later on
    return service


def follow(processes: Processes, service: Process) -> None:
    """Print what the service logs, as it comes."""
    known = len(service.printed())
    while True:
        for process in processes.running:
            if process.popen.poll() is not None:
                raise Failed(f"{process.name} ended:\n{process.printed()}")
        text = service.printed()
        if len(text) > known:
            print(text[known:], end="", flush=True)
            known = len(text)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
