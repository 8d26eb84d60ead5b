"""The process's one client of each service, and the threads that use them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openmeter
import stripe
from corehttp.exceptions import ServiceResponseError
from corehttp.rest import HttpRequest
from corehttp.runtime.pipeline import Pipeline, PipelineResponse
from corehttp.runtime.policies import RetryPolicy
from corehttp.transport import HttpTransport
from requests import RequestException
from requests.exceptions import SSLError
from stripe import _api_requestor

from service.transport import Answer, Connections, Observe, unobserved

# Items that one process reports at the same time; gunicorn's 64 threads read beside them.
POOL_THREADS = 32


@dataclass(frozen=True)
class Clients:
    """A client of each service, and a pool of threads."""

    openmeter: openmeter.Client
    stripe: stripe.StripeClient
    pool: Executor


class StripeTransport(stripe.HTTPClient):
    """Let Stripe's SDK send over our connections."""

    name = "libcurl"

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self.connections = connections

    def request(  # type: ignore[override]  # a body is bytes, as the SDK's own clients return it
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Return the body, status and headers of an answer. Raises APIConnectionError."""
        try:
            answer = self.connections.request(method, url, headers, post_data)
        except RequestException as error:
            is_passing = not isinstance(error, SSLError)
            raise stripe.APIConnectionError(  # type: ignore[no-untyped-call]
                str(error), should_retry=is_passing
            ) from error
        return answer.content, answer.status_code, answer.headers


class OpenMeterTransport(HttpTransport[HttpRequest, Answer]):
    """Let OpenMeter's SDK send over our connections, with the token if there is one."""

    def __init__(self, connections: Connections, token: str | None) -> None:
        self.connections = connections
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def send(self, request: HttpRequest, **_: object) -> Answer:
        """Return the answer. Raises ServiceResponseError, which is tried again."""
        try:
            headers = {**request.headers, **self.headers}
            return self.connections.request(request.method, request.url, headers, request.content)
        except RequestException as error:
            raise ServiceResponseError(error, error=error) from error

    def open(self) -> None:
        """Open nothing: each connection is opened when it is needed."""

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self.connections.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class RetryWithoutWait(RetryPolicy):
    """Retry at once: a `Retry-After` could make the caller sleep for hours."""

    def get_retry_after(self, response: PipelineResponse[Any, Any]) -> None:
        """Return no wait."""


class OpenMeterClient(openmeter.Client):
    """OpenMeter's client, for requests to paths behind an address that ends without a slash.

    Of what the SDK does with a request, only the retry is wanted: its parsing would cost digits,
    and its copy of each request and its way of joining addresses time.
    """

    def __init__(self, address: str, transport: OpenMeterTransport) -> None:
        policies: list[Any] = [RetryWithoutWait(retry_total=1)]
        super().__init__(endpoint=address, policies=policies, transport=transport)
        self.address = address
        self.pipeline = Pipeline[HttpRequest, Answer](transport, policies)

    def send_request(self, request: HttpRequest, **_: object) -> Answer:  # type: ignore[override]
        """Send a request of one use; return the answer, whatever its status. Raises BaseError."""
        request.url = self.address + request.url
        return self.pipeline.run(request).http_response


def quieten_stripe() -> None:
    """Let Stripe's SDK write no log of its own, and tell Stripe nothing of the environment.

    STRIPE_LOG asks for the log, which has payloads. It puts the log's lines together whether
    anybody reads them or not, and looks at twelve variables for each call; neither has a switch.
    """
    for name in ("log_info", "log_debug"):
        setattr(_api_requestor, name, lambda *_, **__: None)
    _api_requestor._APIRequestor.AI_AGENTS = []


def create_stripe_client(
    settings: Mapping[str, Any], observe: Observe = unobserved
) -> stripe.StripeClient:
    """Return Stripe's client; nothing is sent yet. `observe` takes the seconds of each call."""
    # Its telemetry would write a file into the user's home.
    stripe.enable_telemetry = False
    quieten_stripe()
    name = "STRIPE_API_BASE"
    return stripe.StripeClient(
        settings["STRIPE_KEY"],
        base_addresses={"api": settings[name]},
        max_network_retries=1,
        http_client=StripeTransport(Connections(settings[name], observe, name)),
    )


def create_clients(
    settings: Mapping[str, Any], observe: Callable[[str], Observe] = lambda _: unobserved
) -> Clients:
    """Return the clients; nothing is sent yet.

    `observe` returns, for a service's name, what takes the seconds of each of its calls.
    """
    stripe_client = create_stripe_client(settings, observe("stripe"))
    name = "OPENMETER_URL"
    connections = Connections(settings[name], observe("openmeter"), name)
    transport = OpenMeterTransport(connections, settings["OPENMETER_TOKEN"])
    openmeter_client = OpenMeterClient(settings[name], transport)
    return Clients(openmeter_client, stripe_client, ThreadPoolExecutor(POOL_THREADS, "report"))
