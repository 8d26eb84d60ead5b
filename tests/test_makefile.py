"""What make says where it cannot begin, and how it ends."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.processes import ROOT

# Python code that runs before what make gives to a Python that lacks something.
OLD = "import sys; sys.version_info = (3, 10)"
NO_VENV = "import sys; sys.modules['ensurepip'] = None"


def make(folder: Path, *options: str, **env: str) -> tuple[int, list[str]]:
    """Run make in a copy of what it needs; return its exit status and what the recipe printed."""
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    # Within `make check`, this make would be that one's child.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", *options],
        cwd=folder,
        env={**alone, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, [
        line
        for line in done.stdout.splitlines()
        if not line.startswith(("make: ***", "Installing"))
    ]


def python_that_lacks(folder: Path, code: str) -> str:
    """Write a Python that runs some code first."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "{code}; $2"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (OLD, "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."),
        (NO_VENV, "{python} has no venv module: install it, on Debian python3-venv"),
    ],
)
def test_a_python_that_will_not_do_is_told_in_one_line(
    tmp_path: Path, code: str, said: str
) -> None:
    python = python_that_lacks(tmp_path, code)
    printed = [said.format(python=python)]
    assert make(tmp_path, "test", f"PYTHON={python}") == (2, printed)


def test_no_python_is_told_in_one_line(tmp_path: Path) -> None:
    said = "There is no no-python: install Python 3.11 or newer, or make PYTHON=/path/to/python ..."
    assert make(tmp_path, "run", "PYTHON=no-python") == (2, [said])


def test_no_network_for_the_packages_is_told_in_one_line(tmp_path: Path) -> None:
    said = "The packages did not come: is the network there, and pip's package index? "
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    done = make(tmp_path, "demo", f"PYTHON={sys.executable}", **nowhere)
    assert done == (2, [f"{said}.venv/pip.log has more"])
    assert "ERROR" in (tmp_path / ".venv" / "pip.log").read_text()
    assert not (tmp_path / ".venv" / "installed").exists()
