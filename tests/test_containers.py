"""The image, compose.yaml and deploy/kubernetes/: that they agree with each other and the rest.

`make image-check` builds the image and runs it; nothing is built or started in a cluster here.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml

from fakes import play
from fakes.processes import ROOT, Processes, answers, call
from fakes.serving import LOOPBACK
from service.settings import SETTINGS, read_settings, secrets_of
from tests.conftest import KEY, SECRET, TOKEN
from tests.test_house import ARROWS, path_of
from tests.test_project import pins

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
MAKEFILE = (ROOT / "Makefile").read_text()
SYSTEMD = ROOT / "deploy" / "systemd"
OBJECTS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
}
JOBS = ("report", "ending", "audit")


def said(instruction: str) -> list[str]:
    """Return what the Dockerfile has behind an instruction, each time."""
    return re.findall(rf"^{instruction} +(.*)$", DOCKERFILE, re.M)


def copied() -> set[str]:
    """Return what the Dockerfile copies out of this folder."""
    ours = [line.split()[:-1] for line in said("COPY") if not line.startswith("--from")]
    return {name for names in ours for name in names}


def made(target: str) -> list[str]:
    """Return the command that a target of the Makefile leaves its place to."""
    (command,) = re.findall(rf"^{target}: .*\n\t@exec \.venv/bin/(.*)$", MAKEFILE, re.M)
    return shlex.split(command)


def unit_command(name: str) -> list[str]:
    """Return the command of a systemd unit, without the file that node_exporter reads."""
    text = (SYSTEMD / f"{name}.service").read_text()
    (command,) = re.findall(r"^ExecStart=/srv/openmeter-stripe/\.venv/bin/(.*)$", text, re.M)
    return shlex.split(re.sub(r" --metrics \S+", "", command))


def pod(name: str) -> dict[str, Any]:
    """Return what the pods of a Deployment or CronJob are."""
    spec = OBJECTS[name]["spec"]
    found: dict[str, Any] = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
    return found


def container(name: str) -> dict[str, Any]:
    """Return the one container of such a pod."""
    (found,) = pod(name)["containers"]
    return dict(found)


def test_all_start_the_service_and_the_stand_ins_by_the_same_commands() -> None:
    (command,) = said("CMD")
    start = ["python", "-m", "service"]
    assert json.loads(command) == COMPOSE["service"]["command"] == made("run") == start
    assert container("deployment")["command"] == unit_command("openmeter-stripe") == start
    assert COMPOSE["try"]["command"][:3] == made("play") == ["python", "-m", "fakes.play"]
    for job in JOBS:
        assert container(job)["command"] == unit_command(f"openmeter-stripe-{job}")


# The image


def test_the_image_has_the_service_and_nothing_else_of_this_folder() -> None:
    others = ("setup_stripe", "probe")
    modules = [path_of(name).relative_to(ROOT) for name in ARROWS if not name.startswith(others)]
    assert copied() == {path.parts[0] for path in modules} | {"requirements-run.lock"}
    sent = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert set(sent) == copied()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def entries(name: str) -> dict[str, str]:
    """Return the packages of a lock file, each with its version and hashes."""
    parts = re.split(r"^(?=[a-z])", (ROOT / name).read_text(), flags=re.M)[1:]
    return {part.split("==")[0]: re.sub(r" *#.*\n", "", part).strip() for part in parts}


def test_the_image_gets_what_runs_as_it_is_locked_and_tested() -> None:
    run, all_of_them = entries("requirements-run.lock"), entries("requirements.lock")
    assert all("--hash=sha256:" in entry for entry in run.values())
    pinned = {name: re.findall(r"sha256:\w+", text) for name, text in all_of_them.items()}
    for name, text in run.items():
        assert text.split()[0] == all_of_them[name].split()[0], name
        assert re.findall(r"sha256:\w+", text) == pinned[name], name
    assert pins("requirements.txt").keys() <= run.keys()
    assert not pins("requirements-dev.txt").keys() & run.keys()
    (install,) = (line for line in said("RUN") if "install" in line)
    assert {"--require-hashes", "--only-binary", "/requirements-run.lock"} <= set(install.split())


def test_the_image_names_no_host() -> None:
    for name in ("Dockerfile", "compose.yaml", ".dockerignore"):
        hosts = re.findall(r"https?://([\w.-]+)", (ROOT / name).read_text())
        assert set(hosts) <= {LOOPBACK, "openmeter"}


def environment() -> dict[str, str]:
    """Return what the image sets."""
    return dict(pair.split("=", 1) for line in said("ENV") for pair in line.split())


def test_the_image_listens_for_others_and_its_user_has_no_rights() -> None:
    given = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET, **environment()}
    assert read_settings(given)["HOST"] == "0.0.0.0"
    assert said("EXPOSE") == [SETTINGS["PORT"][0]]
    (user,) = said("USER")
    assert min(map(int, user.split(":"))) > 0


class Health(BaseHTTPRequestHandler):
    """Answers /healthz as it is told, and nothing else."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - as the base has it
        """Stay quiet."""


@pytest.fixture
def health_port() -> Iterator[str]:
    """Serve Health; return its port."""
    with HTTPServer((LOOPBACK, 0), Health) as server:
        threading.Thread(target=server.serve_forever).start()
        yield str(server.server_port)
        server.shutdown()


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_fails_as_healthz_does(
    health_port: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Health, "status", status)
    (line,) = said("HEALTHCHECK")
    _, *command = json.loads(line.split(" CMD ")[1])
    env = {**os.environ, "PORT": health_port, "no_proxy": LOOPBACK}
    done = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode == 0) == (status == 200)


# compose.yaml


def test_compose_publishes_what_listens_on_this_machine_alone() -> None:
    service, trial = COMPOSE["service"], COMPOSE["try"]
    given = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET, **service["environment"]}
    settings = read_settings(given)
    assert settings["HOST"] == "0.0.0.0"
    assert service["ports"] == [f"{LOOPBACK}:{settings['PORT']}:{settings['PORT']}"]
    options = play.stand_in_options(trial["command"][3:])
    assert [(host, f"{LOOPBACK}:{port}:{port}") for _, host, _, port in options] == [
        ("0.0.0.0", published) for published in trial["ports"]
    ]
    shown = f"# Open http://{trial['ports'][0].rpartition(':')[0]}/test/subscriptions\n"
    assert shown in (ROOT / "compose.yaml").read_text()
    assert trial["profiles"] == ["try"]


def test_compose_lays_beside_the_service_what_its_pages_need() -> None:
    work = said("WORKDIR")[0]
    lain = {}
    for volume in COMPOSE["try"]["volumes"]:
        ours, theirs, mode = volume.split(":")
        assert mode == "ro"
        lain[(ROOT / ours).resolve()] = theirs
    needed = [ROOT / "fakes", ROOT / "setup_stripe.py"]
    assert lain == {path: f"{work}/{path.name}" for path in needed}


def test_what_is_joined_to_openmeters_network_is_compose_too() -> None:
    text = (ROOT / "compose.yaml").read_text()
    whole = yaml.safe_load(re.sub(r"^( *)# (networks: )", r"\1\2", text, flags=re.M))
    assert whole["services"]["service"]["networks"] == ["default", *whole["networks"]]
    assert whole["networks"]["openmeter"]["external"] is True


def test_a_stand_in_listens_where_it_is_told() -> None:
    with Processes(options=[[], ["--host", "::1"]]) as processes:
        port = processes.openmeter.rpartition(":")[2]
        assert answers(f"http://[::1]:{port}/api/v1/meters")
        with pytest.raises(OSError, match="refused"):
            call("GET", f"{processes.openmeter}/api/v1/meters")


# deploy/kubernetes/: no tool with Kubernetes' own schemas is at hand, so this is the part of its
# API that the files use: which fields there are where, of which type, and which are required (*).
# It does not check that a cluster's version or its policies take them, that what is named is
# there (image, secrets), or how fields depend on each other beyond what the tests below say.

NAME, QUANTITY, PORT = r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?", r"\d+(m|Mi)?", range(1, 65_536)
LABELS = {"*app": NAME}
METADATA = {"*name": NAME, "labels": LABELS}
AMOUNTS = {"cpu": QUANTITY, "*memory": QUANTITY}
PROBE = {
    "*httpGet": {"*path": "/healthz", "*port": "http"},
    "periodSeconds": range(1, 600),
    "timeoutSeconds": range(1, 60),
}
FROM_SECRET = {"*secretKeyRef": {"*name": NAME, "*key": "[A-Za-z0-9._-]+", "optional": bool}}
CONTAINER = {
    "*name": NAME,
    "*image": r"[a-z0-9./:-]+",
    "*workingDir": "/.+",
    "*command": [".+"],
    "*envFrom": [{"*secretRef": {"*name": NAME}}],
    "env": [{"*name": "[A-Z_]+", "value": ".+", "valueFrom": FROM_SECRET}],
    "ports": [{"*name": NAME, "*containerPort": PORT}],
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "lifecycle": {"preStop": {"*exec": {"*command": [".+"]}}},
    "*resources": {"*requests": AMOUNTS, "*limits": AMOUNTS},
    "*securityContext": {
        "*allowPrivilegeEscalation": bool,
        "*readOnlyRootFilesystem": bool,
        "*capabilities": {"*drop": ["ALL"]},
    },
    "volumeMounts": [{"*name": NAME, "*mountPath": "/.+"}],
}
POD = {
    "*metadata": {"*labels": LABELS},
    "*spec": {
        "*containers": [CONTAINER],
        "*automountServiceAccountToken": bool,
        "enableServiceLinks": bool,
        "restartPolicy": "Never|OnFailure",
        "terminationGracePeriodSeconds": range(1, 600),
        "*securityContext": {
            "*runAsNonRoot": bool,
            "*runAsUser": range(1, 65_536),
            "*runAsGroup": range(1, 65_536),
            "*seccompProfile": {"*type": "RuntimeDefault"},
        },
        "volumes": [{"*name": NAME, "*emptyDir": {"sizeLimit": QUANTITY}}],
    },
}
DEPLOYMENT = {
    "*apiVersion": "apps/v1",
    "*kind": "Deployment",
    "*metadata": METADATA,
    "*spec": {"replicas": range(1, 100), "*selector": {"*matchLabels": LABELS}, "*template": POD},
}
SERVICE = {
    "*apiVersion": "v1",
    "*kind": "Service",
    "*metadata": METADATA,
    "*spec": {"*selector": LABELS, "*ports": [{"name": NAME, "*port": PORT, "targetPort": "http"}]},
}
CRON_JOB = {
    "*apiVersion": "batch/v1",
    "*kind": "CronJob",
    "*metadata": METADATA,
    "*spec": {
        "*schedule": r"[\d*,]+( [\d*,]+){4}",
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "*jobTemplate": {
            "*spec": {
                "backoffLimit": range(10),
                "activeDeadlineSeconds": range(1, 86_400),
                "*template": POD,
            }
        },
    },
}
SCHEMAS = {"deployment": DEPLOYMENT, "service": SERVICE} | dict.fromkeys(JOBS, CRON_JOB)


def faults(value: Any, schema: Any, where: str) -> list[str]:
    """Return what of a value the schema does not have, or does not allow."""
    if isinstance(schema, dict):
        return faults_of_object(value, schema, where)
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{where} is no list with something in it"]
        return [fault for item in value for fault in faults(item, schema[0], f"{where}[]")]
    if isinstance(schema, str):
        good = isinstance(value, str) and re.fullmatch(schema, value) is not None
    elif schema is bool:
        good = isinstance(value, bool)
    else:
        good = type(value) is int and value in schema
    return [] if good else [f"{where} is {value!r}"]


def faults_of_object(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    """Return which fields are unknown, missing, or not what they should be."""
    if not isinstance(value, dict):
        return [f"{where} is no object"]
    allowed = {name.removeprefix("*"): inner for name, inner in schema.items()}
    required = {name[1:] for name in schema if name.startswith("*")}
    wrong = [f"{where}.{name} is unknown" for name in value.keys() - allowed.keys()]
    wrong += [f"{where}.{name} is missing" for name in required - value.keys()]
    for name in value.keys() & allowed.keys():
        wrong += faults(value[name], allowed[name], f"{where}.{name}")
    return wrong


def test_there_is_a_schema_for_each_file() -> None:
    assert OBJECTS.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_files_have_fields_that_there_are(name: str) -> None:
    assert faults(OBJECTS[name], SCHEMAS[name], name) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "told"),
    [
        ("report", "workingDir:", "workingdir:", "workingdir is unknown"),
        ("report", "backoffLimit: 0", 'backoffLimit: "0"', "backoffLimit is '0'"),
        ("report", "  schedule:", "  schedules:", "schedule is missing"),
        ("deployment", 'value: "4242"', "value: 4242", "value is 4242"),
        ("deployment", "[{name: tmp, mountPath: /tmp}]", "{name: tmp}", "no list"),
        ("deployment", "runAsUser: 10001", "runAsUser: 0", "runAsUser is 0"),
        ("service", "port: 80,", "port: 80000,", "port is 80000"),
    ],
)
def test_a_fault_in_a_file_would_be_found(name: str, right: str, wrong: str, told: str) -> None:
    text = (ROOT / "deploy" / "kubernetes" / f"{name}.yaml").read_text()
    assert right in text
    found = faults(yaml.safe_load(text.replace(right, wrong)), SCHEMAS[name], name)
    assert told in " ".join(found)


@pytest.mark.parametrize("name", ["deployment", *JOBS])
def test_the_pods_may_do_little(name: str) -> None:
    assert not pod(name)["automountServiceAccountToken"]
    may = pod(name)["securityContext"]
    assert f"{may['runAsUser']}:{may['runAsGroup']}" == said("USER")[0]
    assert may["runAsNonRoot"]
    bounds = container(name)["securityContext"]
    assert not bounds["allowPrivilegeEscalation"]
    assert bounds["readOnlyRootFilesystem"]
    # Where gunicorn and the metrics keep what they write.
    (mount,) = container(name)["volumeMounts"]
    (volume,) = pod(name)["volumes"]
    assert (mount["mountPath"], mount["name"]) == ("/tmp", volume["name"])
    assert container(name)["workingDir"] == said("WORKDIR")[0]


@pytest.mark.parametrize("name", ["deployment", *JOBS])
def test_secrets_come_by_reference(name: str) -> None:
    (source,) = container(name)["envFrom"]
    assert source == {"secretRef": {"name": "openmeter-stripe"}}
    every = dict.fromkeys(SETTINGS, "")
    hidden = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET, "OPENMETER_TOKEN": TOKEN}
    address = {"HEARTBEAT_URL": "https://hc.example/1"}
    secret = secrets_of(read_settings({**every, **hidden, **address}))
    assert len(secret) == len(hidden | address)
    for variable in container(name).get("env", []):
        assert variable["name"] in SETTINGS
        assert ("value" in variable) == (variable["name"] not in hidden | address)


def test_the_service_is_led_to_and_asked_how_it_is() -> None:
    deployment, service = OBJECTS["deployment"]["spec"], OBJECTS["service"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == deployment["selector"]["matchLabels"] == service["selector"]
    one = container("deployment")
    env = {variable["name"]: variable["value"] for variable in one["env"]}
    (port,) = one["ports"]
    assert (env["HOST"], env["PORT"]) == ("0.0.0.0", str(port["containerPort"]))
    (led,) = service["ports"]
    assert led["targetPort"] == port["name"] == one["livenessProbe"]["httpGet"]["port"]
    # gunicorn's graceful_timeout is 30 s.
    waits = int(one["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod("deployment")["terminationGracePeriodSeconds"] >= waits + 35


@pytest.mark.parametrize("job", JOBS)
def test_the_jobs_come_when_the_timers_do_and_once(job: str) -> None:
    spec = OBJECTS[job]["spec"]
    minutes, hours, *days = spec["schedule"].split()
    timer = (SYSTEMD / f"openmeter-stripe-{job}.timer").read_text()
    (calendar,) = re.findall(r"^OnCalendar=\*-\*-\* (\S+) UTC$", timer, re.M)
    padded = re.sub(r"\d+", lambda number: number[0].zfill(2), f"{hours}:{minutes}:0")
    assert calendar == padded
    assert days == ["*"] * 3
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert pod(job)["restartPolicy"] == "Never"
