"""Talks to the gateway's admin routes, for the command line and benchmarks."""

from typing import Any, Self

import httpx
import msgspec

from td_runtime.errors import ControlPlaneUnavailableError
from td_runtime.secret import Secret

__all__ = ["PlatformClient", "Stats"]


class Stats(msgspec.Struct, frozen=True):
    """What the gateway has counted since it was started."""

    puts: dict[str, int]
    """Mints asked for, by slot."""
    records: dict[str, int]
    """Records stored, by ``<run id>/<stream key>``."""

    def of_runs(self, run_ids: set[str]) -> "Stats":
        """Return the part that belongs to these runs."""
        return Stats(
            puts={k: n for k, n in self.puts.items() if k.split("/")[1] in run_ids},
            records={k: n for k, n in self.records.items() if k.split("/")[0] in run_ids},
        )


class PlatformClient:
    """A client of one gateway; blocking, a context manager.

    Raises:
        ControlPlaneUnavailableError: From any method: it does not answer, or refuses.
    """

    def __init__(self, url: str, secret: Secret) -> None:
        # No proxy from the environment: the gateway is on this host.
        self._http = httpx.Client(
            base_url=f"{url}/platform/v1",
            headers={"authorization": f"Bearer {secret.reveal()}"},
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def stats(self) -> Stats:
        """Return the counts."""
        return msgspec.json.decode(self._request("GET", "/stats").content, type=Stats)

    def all_stats(self) -> Any:
        """Return everything the gateway counts, single mints included."""
        return self._request("GET", "/stats").json()

    def add_fault(self, fault: dict[str, Any]) -> Any:
        """Put a fault in force, or end tokens."""
        return self._request("POST", "/faults", fault).json()

    def faults(self) -> Any:
        """Return the faults in force."""
        return self._request("GET", "/faults").json()

    def clear_faults(self) -> Any:
        """End all faults."""
        return self._request("DELETE", "/faults").json()

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ControlPlaneUnavailableError(
                f"the gateway does not answer: {error}",
                where=str(self._http.base_url),
                advice="Start it with `td-runtime start`, with the same config file.",
            ) from error
        if not response.is_success:
            raise ControlPlaneUnavailableError(
                f"the gateway refuses ({response.status_code}): {_said(response)}",
                where=f"{method} {self._http.base_url}{path.removeprefix('/')}",
            )

        return response


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
