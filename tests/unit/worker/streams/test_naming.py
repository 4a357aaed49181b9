from __future__ import annotations

import pytest

from td_worker.context import RunInfo
from td_worker.errors import NotInTaskError, StreamKeyError
from td_worker.streams.naming import check_key, resolve_target

CHILD = RunInfo(id="run_c", parent_id="run_p", root_id="run_r")
ROOT = RunInfo(id="run_r")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, "run_c"),
        ("self", "run_c"),
        ("parent", "run_p"),
        ("root", "run_r"),
        ("run_x", "run_x"),
    ],
)
def test_a_target_names_a_run_of_the_family_or_any_other(target, expected):
    """self, parent and root are looked up; any other text is the run id itself."""
    assert resolve_target(target, CHILD) == expected


@pytest.mark.parametrize("target", ["root", "parent"])
@pytest.mark.conformance("TG1", "TG2")
def test_a_root_run_stands_in_for_its_root_and_parent(target):
    """TG1, TG2: a run without root or parent streams to itself."""
    assert resolve_target(target, ROOT) == "run_r"


def test_a_target_outside_a_task_needs_an_id():
    """Outside a task only a run id works, and the error says so."""
    assert resolve_target("run_x", None) == "run_x"
    with pytest.raises(NotInTaskError, match="target=<run id>"):
        resolve_target("parent", None)


@pytest.mark.parametrize("key", ["", "a/b", ".", "..", "\ud800"])
def test_a_key_that_would_name_another_stream_is_refused(key):
    """Empty keys, paths, dots and broken Unicode are refused by name."""
    with pytest.raises(StreamKeyError, match="stream key"):
        check_key(key)


@pytest.mark.parametrize("key", ["default", "a b", "größe", "100%", "a:b", "$trigger.input:x", "…"])
def test_any_other_key_is_fine(key):
    """Other characters are only percent-encoded on the way."""
    assert check_key(key) == key


def test_a_key_is_text():
    """A number as a key is a mistake that is named."""
    with pytest.raises(StreamKeyError, match="int"):
        check_key(7)  # type: ignore[arg-type]


def test_a_target_that_is_a_path_is_refused():
    """A run id with a slash would reach into another route."""
    with pytest.raises(StreamKeyError, match="run id"):
        resolve_target("run/../x", ROOT)
