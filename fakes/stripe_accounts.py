"""Several accounts behind one address: each has an app, and so a store, of its own."""

import re
import threading
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

ACCOUNT = re.compile(r"acct_\w+")
CONTROL = re.compile(r"/_fake/accounts/(acct_\w+)(/.+)")


def account_of(environ: WSGIEnvironment) -> str | None:
    """Return the account that a call names, or None for the key's own.

    `Stripe-Context` supersedes `Stripe-Account`. It may be a path, whose last part is the account
    (docs.stripe.com/context).
    """
    context = str(environ.get("HTTP_STRIPE_CONTEXT", ""))
    return context.rpartition("/")[2] or environ.get("HTTP_STRIPE_ACCOUNT") or None


class Accounts:
    """Leads each call to the account that it names, which is made when it is first named."""

    def __init__(self, own: WSGIApplication, make: Callable[[str], Flask]) -> None:
        self.own = own
        self.make = make
        self.lock = threading.Lock()
        self.apps: dict[str, Flask] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a call, as WSGI has it."""
        path = environ["PATH_INFO"]
        if control := CONTROL.fullmatch(path):
            there = {**environ, "PATH_INFO": f"/_fake{control[2]}"}
            return self.app(control[1])(there, start_response)
        name = None if path.startswith("/_fake/") else account_of(environ)
        if name is None or not ACCOUNT.fullmatch(name):
            return self.own(environ, start_response)
        return self.app(name)(environ, start_response)

    def app(self, name: str) -> Flask:
        """Return an account's app."""
        with self.lock:
            if name not in self.apps:
                self.apps[name] = self.make(name)
            return self.apps[name]
