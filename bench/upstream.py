"""OpenMeter and Stripe on two ports, with a set latency: python -m bench.upstream.

Unlike the stand-ins of fakes/ it answers at once and keeps connections.
"""

import argparse
import asyncio
import re
from collections.abc import Iterator
from email.utils import formatdate
from functools import partial

from bench.answers import Answer, Upstream
from bench.renewals import METER

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def message(answer: Answer) -> bytes:
    """Return an HTTP answer of JSON."""
    reason = f"\r\nStripe-Rate-Limited-Reason: {answer.reason}" if answer.reason else ""
    head = (
        f"HTTP/1.1 {answer.status} -\r\nContent-Type: application/json\r\n"
        f"Date: {formatdate(usegmt=True)}\r\nContent-Length: {len(answer.body)}{reason}"
    )
    return head.encode() + b"\r\n\r\n" + answer.body


async def converse(
    upstream: Upstream,
    seconds: float,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer a connection's requests one after the other, each after the latency."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            answer = message(upstream.answer(method, target, body))
            if seconds:
                await asyncio.sleep(seconds)
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def addresses(servers: list[asyncio.Server]) -> Iterator[str]:
    """Yield where each server listens."""
    for server in servers:
        host, port = server.sockets[0].getsockname()
        yield f"Listening on http://{host}:{port}"


async def serve(upstream: Upstream, milliseconds: list[int]) -> None:
    """Listen with each of these latencies, and print the addresses in their order."""
    servers = [
        await asyncio.start_server(partial(converse, upstream, latency / 1_000), "127.0.0.1", 0)
        for latency in milliseconds
    ]
    print("\n".join(addresses(servers)), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stripe-ms", type=int, default=0)
    parser.add_argument("--openmeter-ms", type=int, default=0)
    parser.add_argument("--subscriptions", type=int, default=0)
    parser.add_argument("--invoices", type=int, default=0)
    parser.add_argument("--meter", action="store_true", help="list them on a Billing Meter")
    parser.add_argument("--spread", action="store_true", help="over a month's hours")
    parser.add_argument("--live", action="store_true", help="refuse above a live account's limits")
    given = parser.parse_args()
    meter = METER if given.meter else None
    upstream = Upstream(given.subscriptions, given.invoices, meter, given.spread, given.live)
    asyncio.run(serve(upstream, [given.stripe_ms, given.openmeter_ms]))


if __name__ == "__main__":
    main()
