"""The process's one client of each service, and the threads that use them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openmeter
import stripe
from corehttp.credentials import ServiceKeyCredential
from corehttp.runtime.pipeline import PipelineResponse
from corehttp.runtime.policies import RetryPolicy, ServiceKeyCredentialPolicy, UserAgentPolicy
from corehttp.transport.requests import RequestsTransport

from service.transport import Observe, http_session, unobserved

# Items that one process reports at the same time; gunicorn's 64 threads read beside them.
POOL_THREADS = 32


@dataclass(frozen=True)
class Clients:
    """A client of each service, and a pool of threads."""

    openmeter: openmeter.Client
    stripe: stripe.StripeClient
    pool: Executor


class RetryWithoutWait(RetryPolicy):
    """Retry at once: a `Retry-After` could make the caller sleep for hours."""

    def get_retry_after(self, response: PipelineResponse[Any, Any]) -> None:
        """Return no wait."""


def create_stripe_client(
    settings: Mapping[str, Any], observe: Observe = unobserved
) -> stripe.StripeClient:
    """Return Stripe's client; nothing is sent yet. `observe` takes the seconds of each call."""
    # Its telemetry would write a file into the user's home.
    stripe.enable_telemetry = False
    name = "STRIPE_API_BASE"
    return stripe.StripeClient(
        settings["STRIPE_KEY"],
        base_addresses={"api": settings[name]},
        max_network_retries=1,
        http_client=stripe.RequestsClient(session=http_session(settings[name], observe, name)),
    )


def openmeter_policies(token: str | None) -> list[Any]:
    """Return what OpenMeter's SDK does with each request and answer.

    Of what it does otherwise, the parsing is left out, which would cost digits (usage.py).
    """
    policies: list[Any] = [UserAgentPolicy(), RetryWithoutWait(retry_total=1)]
    if token:
        key = ServiceKeyCredential(token)
        policies.append(ServiceKeyCredentialPolicy(key, "Authorization", prefix="Bearer"))
    return policies


def create_clients(
    settings: Mapping[str, Any], observe: Callable[[str], Observe] = lambda _: unobserved
) -> Clients:
    """Return the clients; nothing is sent yet.

    `observe` returns, for a service's name, what takes the seconds of each of its calls.
    """
    stripe_client = create_stripe_client(settings, observe("stripe"))
    name = "OPENMETER_URL"
    openmeter_session = http_session(settings[name], observe("openmeter"), name)
    openmeter_client = openmeter.Client(
        endpoint=settings["OPENMETER_URL"],
        policies=openmeter_policies(settings["OPENMETER_TOKEN"]),
        transport=RequestsTransport(session=openmeter_session),
    )
    return Clients(openmeter_client, stripe_client, ThreadPoolExecutor(POOL_THREADS, "report"))
