"""The error tree and the exit codes."""

import pickle

import pytest

from td_runtime import errors
from td_runtime.errors import ConfigError, ExitCode, StoreError, TdRuntimeError


def all_errors() -> list[type[TdRuntimeError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, TdRuntimeError)
    ]


def test_exit_codes_are_those_of_the_design():
    """Scripts depend on the numbers."""
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "CONFIG": 3,
        "TASK_IMPORT": 4,
        "CONTROL_PLANE": 5,
        "STORE": 6,
        "TOO_MANY_RESTARTS": 7,
        "ALREADY_RUNNING": 8,
    }


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_has_a_sentence(code):
    """`--help` and the docs print one sentence a code."""
    assert code.description[0].isupper()
    assert code.description.endswith(".")
    assert code.description.count(".") == 1


def test_every_failure_has_an_error():
    """Each exit code but 0 is the code of one error class."""
    assert sorted(error.exit_code for error in all_errors()) == sorted(
        set(ExitCode) - {ExitCode.OK}
    )


@pytest.mark.parametrize("kind", all_errors())
def test_an_error_reads_well_without_a_message(kind):
    """The docstring's first sentence is the default message."""
    assert str(kind()).endswith(".")
    assert "\n" not in str(kind())


def test_an_error_says_what_where_and_what_next():
    """All three are rendered, one a line."""
    error = StoreError("the disk is full", where="/data/runs.db", advice="make room")

    assert str(error) == "the disk is full\n  at: /data/runs.db\n  next: make room"


def test_errors_survive_pickling():
    """An error of a child arrives whole in its parent."""
    error = ConfigError(problems=("a", "b"), where="/x.toml", advice="correct it")
    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy), repr(copy)) == (ConfigError, str(error), repr(error))
    assert copy.problems == ("a", "b")
