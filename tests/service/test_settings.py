"""What the service needs to start, however it is started."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from flask.cli import FlaskGroup

import app
from fakes.processes import ROOT, answers, wait_for
from service import settings
from tests.conftest import KEY, SECRET, TOKEN, free_port

GOOD = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET}
STARTS = {
    "flask": ["-m", "flask", "run", "--port", "0"],
    "python": ["app.py"],
    "service": ["-m", "service", "--bind", "127.0.0.1:0"],
}
LISTENING = re.compile(r"(?:Running on|Listening at:) (http://(?:127\.0\.0\.1|localhost):\d+)")


def test_defaults() -> None:
    assert settings.read_settings(GOOD) == {
        **GOOD,
        "STRIPE_WEBHOOK_SECRET": (SECRET,),
        "STRIPE_API_BASE": "https://api.stripe.com",
        "OPENMETER_URL": "http://localhost:8888",
        "OPENMETER_TOKEN": None,
        "OPENMETER_WINDOW_SIZE": "HOUR",
        "USAGE_ROUNDING": "down",
        "INVOICE_GRACE_HOURS": 0,
        "HOST": "localhost",
        "PORT": 4242,
        "LOG_FORMAT": "text",
        "METRICS": False,
        "HEARTBEAT_URL": None,
        "WEB_CONCURRENCY": 1,
        "STRIPE_RATE_SHARE": 80,
        "RATE_LIMIT_REDIS": None,
    }


@pytest.mark.parametrize("value", ["whsec_1,whsec_2", "whsec_1, whsec_2"])
def test_two_webhook_secrets_are_accepted(value: str) -> None:
    found = settings.read_settings({**GOOD, "STRIPE_WEBHOOK_SECRET": value})
    assert found["STRIPE_WEBHOOK_SECRET"] == ("whsec_1", "whsec_2")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("HEARTBEAT_URL", "https://hc.example/6f0c"),
        ("RATE_LIMIT_REDIS", "rediss://user:hunter2@redis.example:6380/1"),
        ("RATE_LIMIT_REDIS", "unix:///run/redis.sock?db=1"),
    ],
)
def test_an_address_that_tells_who_we_are_is_a_secret(name: str, url: str) -> None:
    found = settings.read_settings({**GOOD, name: url})
    assert found[name] == url
    assert url in settings.secrets_of(found)


def test_an_empty_value_counts_as_not_set() -> None:
    optional = dict.fromkeys(settings.SETTINGS.keys() - GOOD.keys(), "")
    assert settings.read_settings({**GOOD, **optional}) == settings.read_settings(GOOD)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "missing: STRIPE_KEY, STRIPE_WEBHOOK_SECRET"),
        ({"STRIPE_KEY": KEY}, "missing: STRIPE_WEBHOOK_SECRET"),
        ({"STRIPE_WEBHOOK_SECRET": SECRET}, "missing: STRIPE_KEY"),
        ({"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": ""}, "missing: STRIPE_WEBHOOK_SECRET"),
    ],
)
def test_one_message_names_all_that_is_missing(
    given: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        settings.StartupExit, match=re.escape(f"{named} (see .env.example)")
    ) as ended:
        app.create_app(given)
    assert ended.value.code == 3
    assert capsys.readouterr().err == f"{ended.value}\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_KEY", "sk_test_1\n"),
        ("STRIPE_KEY", "sk test"),
        ("STRIPE_KEY", "sk_tést"),
        ("STRIPE_KEY", "pk_test_7Kq2"),
        ("STRIPE_KEY", "whsec_9Zr4"),
        ("STRIPE_KEY", "hello"),
        ("STRIPE_WEBHOOK_SECRET", "sk_test_7Kq2"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_1,rk_live_7Kq2"),
        ("STRIPE_WEBHOOK_SECRET", "whsec 1"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_1,"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_1,,whsec_3"),
        ("LOG_FORMAT", "xml"),
        ("METRICS", "yes"),
        ("OPENMETER_TOKEN", "to\rken"),
        ("STRIPE_API_BASE", "api.stripe.com"),
        ("STRIPE_API_BASE", "ftp://api.stripe.com"),
        ("STRIPE_API_BASE", "https:///v1"),
        ("STRIPE_API_BASE", "https://api.stripe.com/v1"),
        ("OPENMETER_URL", "localhost:8888"),
        ("OPENMETER_URL", "http://host/api/v1/"),
        ("OPENMETER_URL", "http://user:pass@localhost"),
        ("OPENMETER_URL", "http://localhost?x=1"),
        ("OPENMETER_URL", "http://localhost:99999"),
        ("OPENMETER_URL", "http://[::1"),
        ("OPENMETER_URL", "http://a..b"),
        ("OPENMETER_URL", f"http://{'a' * 70}"),
        ("HEARTBEAT_URL", "hc.example/6f0c"),
        ("HEARTBEAT_URL", "https://hc.example/6f0c?create=1"),
        ("HEARTBEAT_URL", "https://hc.example/é"),
        ("OPENMETER_WINDOW_SIZE", "WEEK"),
        ("OPENMETER_WINDOW_SIZE", "hour"),
        ("INVOICE_GRACE_HOURS", "73"),
        ("INVOICE_GRACE_HOURS", "-1"),
        ("INVOICE_GRACE_HOURS", "1.5"),
        ("STRIPE_RATE_SHARE", "9"),
        ("STRIPE_RATE_SHARE", "101"),
        ("STRIPE_RATE_SHARE", "80%"),
        ("STRIPE_RATE_SHARE", "-1"),
        ("STRIPE_RATE_SHARE", "007"),
        ("RATE_LIMIT_REDIS", "cache.example:6379"),
        ("RATE_LIMIT_REDIS", "http://:hunter2@redis.example"),
        ("RATE_LIMIT_REDIS", "redis://:hunter 2@redis.example"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "two"),
        ("USAGE_ROUNDING", "even"),
        ("HOST", "localhost:4242"),
        ("HOST", "http://localhost"),
        ("HOST", "[::1]:4242"),
        ("HOST", "300.0.0.1"),
        ("HOST", "local host"),
        ("PORT", "0"),
        ("PORT", 0),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("PORT", "४२"),
    ],
)
def test_a_value_that_is_not_valid_is_named_but_not_shown(name: str, value: object) -> None:
    with pytest.raises(settings.StartupExit, match=f"{name} must be") as ended:
        settings.read_settings({**GOOD, name: value})
    assert str(value) not in str(ended.value)


SECRET_KEY = "must be a secret key (sk_...) or a restricted one (rk_...)"
SIGNING = "must be a webhook's signing secret (whsec_...)"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STRIPE_KEY", "pk_test_7Kq2", f"{SECRET_KEY}, not a publishable key"),
        ("STRIPE_KEY", "whsec_9Zr4", f"{SECRET_KEY}, not a webhook's signing secret"),
        ("STRIPE_KEY", "hello", f"{SECRET_KEY}, which it is not"),
        ("STRIPE_WEBHOOK_SECRET", "sk_test_7Kq2", f"{SIGNING}, not a secret key"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_1,rk_live_7Kq2", f"{SIGNING}, not a restricted key"),
        ("STRIPE_WEBHOOK_SECRET", "sk_org_live_7Kq2", f"{SIGNING}, not an organization's key"),
        (
            "STRIPE_API_BASE",
            "localhost:48888",
            "must be an address with http:// or https:// before it, which is missing",
        ),
        (
            "OPENMETER_URL",
            "localhost:48888",
            "must be an address with http:// or https:// before it, which is missing",
        ),
        (
            "OPENMETER_URL",
            "http://host:48888/om/api/v1",
            "must be http://host:48888/om, without the /api/v1 of each call",
        ),
        (
            "OPENMETER_URL",
            "http://host/api/v1/meters",
            "must be http://host, without the /api/v1 of each call",
        ),
        (
            "STRIPE_API_BASE",
            "https://api.stripe.com/v1/",
            "must be https://api.stripe.com, without the /v1 of each call",
        ),
    ],
)
def test_what_is_wrong_with_a_value_is_told(name: str, value: str, said: str) -> None:
    with pytest.raises(settings.StartupExit) as ended:
        settings.read_settings({**GOOD, name: value})
    assert str(ended.value) == f"Cannot start: {name} {said}"


@pytest.mark.parametrize("key", ["sk_live_1", "rk_test_1", "sk_org_live_1", "sk_test_standin"])
def test_each_kind_of_key_that_calls_is_accepted_and_hidden(key: str) -> None:
    found = settings.read_settings({**GOOD, "STRIPE_KEY": key})
    assert found["STRIPE_KEY"] == key
    assert key in settings.secrets_of(found)


@pytest.mark.parametrize("url", ["http://host/v1", "http://host/api/v1x", "http://v1.host/api"])
def test_an_address_that_only_looks_like_the_path_of_a_call_is_accepted(url: str) -> None:
    assert settings.read_settings({**GOOD, "OPENMETER_URL": url})["OPENMETER_URL"] == url


def test_missing_and_not_valid_are_told_at_once() -> None:
    with pytest.raises(settings.StartupExit, match="STRIPE_KEY.*USAGE_ROUNDING.*PORT"):
        settings.read_settings({**GOOD, "STRIPE_KEY": "", "USAGE_ROUNDING": "x", "PORT": "x"})


def test_an_empty_variable_does_not_hide_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "dotenv_values", lambda _: {"STRIPE_KEY": KEY, "PORT": "1"})
    monkeypatch.setenv("STRIPE_KEY", "")
    monkeypatch.setenv("PORT", "2")
    found = settings.load_environment()
    assert (found["STRIPE_KEY"], found["PORT"]) == (KEY, "2")


def test_a_trailing_slash_of_an_address_is_dropped() -> None:
    found = settings.read_settings({**GOOD, "OPENMETER_URL": "http://localhost:8888/om/"})
    assert found["OPENMETER_URL"] == "http://localhost:8888/om"


def test_an_env_file_of_another_user_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(settings, "dotenv_values", refuse)
    with pytest.raises(settings.StartupExit, match="cannot be read by this user"):
        settings.load_environment()


# At 3, gunicorn does not try again; `flask report` has a 3 of its own.
STATUS = {"flask": 1, "python": 3, "service": 3}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with the service and nothing else, so that `.env` is the test's own."""
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    for folder in ("audit", "billing", "doctor", "service"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def ended(copy: Path, way: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Start the service, which cannot; return its exit status and all that it printed."""
    return printed_by(copy, STARTS[way], env)


def printed_by(copy: Path, start: list[str], env: dict[str, str] | None) -> tuple[int, str]:
    """Run what ends by itself; return its exit status and all that it printed."""
    done = subprocess.run(
        [sys.executable, *start],
        cwd=copy,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


@pytest.mark.parametrize("way", STARTS)
def test_a_start_without_settings_ends_with_one_message(copy: Path, way: str) -> None:
    message = "Cannot start: missing: STRIPE_KEY, STRIPE_WEBHOOK_SECRET (see .env.example)"
    assert ended(copy, way) == (STATUS[way], f"{message}\n")


@pytest.mark.parametrize("way", STARTS)
def test_a_start_without_a_webhook_secret_is_refused(copy: Path, way: str) -> None:
    message = "Cannot start: missing: STRIPE_WEBHOOK_SECRET (see .env.example)"
    env = {**os.environ, "STRIPE_KEY": KEY}
    assert ended(copy, way, env) == (STATUS[way], f"{message}\n")


@pytest.mark.parametrize("command", ["report", "replay", "audit"])
def test_the_commands_need_no_webhook_secret(copy: Path, command: str) -> None:
    env = {**os.environ, "STRIPE_API_BASE": "http://127.0.0.1:9", "STRIPE_KEY": KEY}
    status, printed = printed_by(copy, ["-m", "flask", command], env)
    assert (status, "Cannot start" in printed) == (1, False)
    assert "Stripe did not answer" in printed


def test_a_service_without_a_secret_takes_no_deliveries() -> None:
    with click.Context(FlaskGroup()):
        application = app.create_app({"STRIPE_KEY": KEY})
        protected = app.create_app(GOOD)
    assert application.test_client().post("/webhook", data="{}").status_code == 404
    assert protected.test_client().post("/webhook", data="{}").status_code == 400


# `flask run` reads the file before the service can.
@pytest.mark.parametrize("way", ["python", "service"])
def test_an_env_file_that_is_no_utf_8_ends_the_start(copy: Path, way: str) -> None:
    (copy / ".env").write_bytes(b"# caf\xe9\n")
    assert ended(copy, way) == (3, "Cannot start: .env is not UTF-8\n")


@pytest.mark.parametrize("way", STARTS)
def test_an_env_file_is_honoured_and_real_variables_win(copy: Path, way: str) -> None:
    (copy / ".env").write_text(f"STRIPE_KEY={KEY}\nUSAGE_ROUNDING=wrong\nPORT=0\n")
    env = {**os.environ, "STRIPE_WEBHOOK_SECRET": SECRET, "PYTHONUNBUFFERED": "1"}
    status, printed = ended(copy, way, {**env, "PORT": "4242"})
    assert status == STATUS[way]
    assert printed.startswith("Cannot start: USAGE_ROUNDING must be one of")

    output = (copy / "output").open("w")
    running = subprocess.Popen(
        [sys.executable, *STARTS[way]],
        cwd=copy,
        env={**env, "USAGE_ROUNDING": "up", "OPENMETER_TOKEN": TOKEN, "PORT": free_port()},
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        url = wait_for(
            lambda: LISTENING.search((copy / "output").read_text()), "the service", 30
        ).group(1)
        wait_for(lambda: answers(f"{url}/healthz"), "an answer", 30)
    finally:
        running.terminate()
        running.wait(10)
        output.close()
    printed = (copy / "output").read_text()
    assert not any(word in printed for word in (KEY, SECRET, TOKEN))


@pytest.mark.parametrize(
    ("given", "found"),
    [("0.0.0.0", "0.0.0.0"), ("::1", "[::1]"), ("[::]", "[::]"), ("om.example", "om.example")],
)
def test_a_host_to_listen_on_is_a_name_or_an_address(given: str, found: str) -> None:
    assert settings.read_settings({**GOOD, "HOST": given})["HOST"] == found


def service_from(folder: Path, command: list[str], env: dict[str, str]) -> tuple[str, str]:
    """Start the service in a folder until it answers; return its address and what it printed."""
    with (folder / "output").open("w") as output:
        running = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=env, stdout=output, stderr=output
        )
        try:
            listening = re.compile(r"(?:Listening at:|Running on) (http://\S+)\s")
            found = wait_for(
                lambda: listening.search((folder / "output").read_text()), "the service", 30
            )
            wait_for(lambda: answers(f"{found[1]}/healthz"), "an answer", 30)
        finally:
            running.terminate()
            running.wait(10)
    return found[1], (folder / "output").read_text()


def test_started_from_elsewhere_it_has_our_worker_and_listens_on_localhost(
    copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    port, elsewhere = free_port(), tmp_path_factory.mktemp("elsewhere")
    (copy / ".env").write_text(f"STRIPE_KEY={KEY}\nSTRIPE_WEBHOOK_SECRET={SECRET}\nPORT={port}\n")
    # Which gunicorn would take from here for its own.
    (elsewhere / "gunicorn.conf.py").write_text("bind = '0.0.0.0:1'\n")
    address, printed = service_from(elsewhere, [str(copy / "service")], dict(os.environ))
    assert address == f"http://127.0.0.1:{port}"
    assert "Using worker: service.serving.Worker" in printed


def test_the_services_options_are_gunicorns_and_win(copy: Path) -> None:
    env = {**os.environ, "STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET, "HOST": "::1"}
    command = ["-m", "service", "--bind", "127.0.0.1:0", "--workers", "2"]
    address, printed = service_from(copy, command, env)
    assert address.startswith("http://127.0.0.1:")
    assert printed.count("Booting worker") == 2


@pytest.mark.parametrize("command", [["-m", "service"], ["app.py"]], ids=["service", "python"])
def test_it_listens_where_it_is_told(copy: Path, command: list[str]) -> None:
    given = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET, "HOST": "::1", "PORT": free_port()}
    address, _ = service_from(copy, command, {**os.environ, **given, "PYTHONUNBUFFERED": "1"})
    assert address == f"http://[::1]:{given['PORT']}"
