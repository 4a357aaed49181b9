"""What docs/how-to/trigger-from-a-web-app.md shows, executed."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

from td_runtime import Client
from tests.runtime_process import RuntimeProcess

PAGE = Path(__file__).parents[3] / "docs/how-to/trigger-from-a-web-app.md"
FLASK, STARLETTE = re.findall(r"^```python\n(.+?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
TASKS = "async def report(payload):\n    return {'rows': payload['rows']}\n"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(tmp_path_factory.mktemp("runtime"), tasks=TASKS, workers=1) as process:
        yield process


@pytest.fixture(autouse=True)
def _config(runtime: RuntimeProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TD_RUNTIME_CONFIG", str(runtime.config))


class StandIn:
    """As much of Flask as the page uses; Flask itself is no dependency of the tests."""

    def __init__(self, _: str) -> None:
        self.views: dict[str, Any] = {}
        self.handlers: dict[type[Exception], Any] = {}

    def post(self, path: str) -> Any:
        return lambda view: self.views.setdefault(path, view)

    get = post

    def errorhandler(self, kind: type[Exception]) -> Any:
        return lambda view: self.handlers.setdefault(kind, view)

    def call(self, path: str, **arguments: str) -> Any:
        try:
            return self.views[path](**arguments)
        except tuple(self.handlers) as error:
            return self.handlers[type(error)](error)


def test_flask(runtime: RuntimeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is sent twice makes one run, its result is shown, errors have a status."""
    flask: Any = ModuleType("flask")
    flask.Flask, flask.jsonify = StandIn, dict
    flask.request = SimpleNamespace(
        get_json=lambda: {"rows": 3}, headers={"x-user": "17", "x-request-id": "r-1"}
    )
    monkeypatch.setitem(sys.modules, "flask", flask)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(compile(FLASK, str(PAGE), "exec"), names)
    app, runs = names["app"], names["runs"]
    with runs:
        (first, status), (second, _) = app.call("/reports"), app.call("/reports")
        runs.wait(first["id"], timeout=30)
        shown = app.call("/reports/<run_id>", run_id=first["id"])

        assert (first, status) == (second, 202)
        assert shown == {"status": "COMPLETED", "output": {"rows": 3}}
        assert runs.retrieve(first["id"]).tags == ("report", "user_17")
        assert app.call("/reports/<run_id>", run_id="run_no") == (
            {"error": "there is no run 'run_no'"},
            404,
        )


async def test_starlette(runtime: RuntimeProcess) -> None:
    """A run is triggered and awaited from a loop."""
    names: dict[str, Any] = {"__name__": "shop"}
    exec(compile(STARLETTE, str(PAGE), "exec"), names)
    app = names["app"]
    transport = httpx.ASGITransport(app=app)
    async with (
        names["lifespan"](app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as web,
    ):
        ordered = await web.post("/reports", json={"rows": 2})
        done = await web.get(f"/reports/{ordered.json()['id']}")

    assert ordered.status_code == 202
    assert done.json() == {"status": "COMPLETED", "output": {"rows": 2}}
    with Client(runtime.config) as client:
        run = client.retrieve(ordered.json()["id"])
    assert run.triggered_by is not None
    assert run.triggered_by.startswith("shop (user ")
