"""Each process on one core."""

import os

import pytest
from click import Context
from flask.cli import FlaskGroup
from pytest_mock import MockerFixture

import app
from service.cores import stay_on_one_core

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system keeps no process on a core"
)


def test_processes_take_the_cores_they_may_use_in_turn(mocker: MockerFixture) -> None:
    mocker.patch("os.sched_getaffinity", return_value={2, 5, 7})
    kept = mocker.patch("os.sched_setaffinity")
    for number in range(4):
        stay_on_one_core(number)
    assert {call.args[0] for call in kept.call_args_list} == {0}  # this process
    cores = [call.args[1] for call in kept.call_args_list]
    assert sorted(core for (core,) in cores[:3]) == [2, 5, 7]
    assert cores[3] == cores[0]


def test_where_it_is_not_allowed_nothing_changes(mocker: MockerFixture) -> None:
    before = os.sched_getaffinity(0)
    mocker.patch("os.sched_setaffinity", side_effect=PermissionError)
    stay_on_one_core()
    assert os.sched_getaffinity(0) == before


def test_where_there_is_no_such_call_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.delattr(os, "sched_setaffinity")
    stay_on_one_core()
    assert os.sched_getaffinity(0) == before


def test_a_command_stays_on_one_core_and_what_embeds_the_service_does_not(
    config: dict[str, object], mocker: MockerFixture
) -> None:
    kept = mocker.patch("app.stay_on_one_core")
    app.create_app(config)
    kept.assert_not_called()
    with Context(FlaskGroup(), info_name="flask"):
        app.create_app(config)
    kept.assert_called_once_with()
