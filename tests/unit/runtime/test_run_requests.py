"""What clients may ask about runs."""

from __future__ import annotations

import math

import msgspec
import pytest

from td_runtime.admission import TriggerError
from td_runtime.control_messages import ListRuns
from td_runtime.run_requests import read_query


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("moment", [math.inf, -math.inf, math.nan])
def test_a_moment_that_is_none_is_refused(name: str, moment: float) -> None:
    """It is the client's mistake, and no failure of the supervisor, which would stop for it."""
    with pytest.raises(TriggerError, match=f"{name} = "):
        read_query(msgspec.structs.replace(ListRuns(), **{name: moment}))
