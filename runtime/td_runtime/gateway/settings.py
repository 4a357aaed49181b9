"""What the supervisor tells the gateway, as one JSON document on standard input."""

from typing import Annotated, Literal

import msgspec

from td_runtime.gateway.errors import SettingsError


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How and where log lines go; without ``fd`` to standard error."""

    format: Literal["json", "pretty"] = "json"
    level: str = "info"
    fd: int | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a gateway process needs to know.

    ``control_fd`` is one end of a socket pair: the gateway says READY there, and ends when the
    other end is closed. ``allow_origins`` are the web pages that may send requests.
    """

    data_dir: str
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    secret_key: Annotated[str, msgspec.Meta(min_length=1)]
    control_fd: int
    allow_faults: bool = False
    allow_origins: tuple[str, ...] = ()
    log: LogSettings = msgspec.field(default_factory=LogSettings)

    def __repr__(self) -> str:
        """Without the secret key, which must not reach a log or a traceback."""
        return f"Settings(data_dir={self.data_dir!r}, host={self.host!r}, port={self.port})"

    @property
    def netloc(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def advertised(self) -> str:
        """Host and port that clients on this machine reach it by."""
        return f"localhost:{self.port}" if self.is_wildcard else self.netloc

    @property
    def is_wildcard(self) -> bool:
        """Whether it listens on every interface."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104  compared, not bound


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload of the config changes: one line of JSON on the control descriptor."""

    allow_origins: tuple[str, ...]
    log_level: str


def parse_settings(document: bytes) -> Settings:
    """Parse the settings.

    Raises:
        SettingsError: They do not fit.
    """
    try:
        return msgspec.json.decode(document, type=Settings)
    except msgspec.DecodeError as error:
        raise SettingsError(f"the settings on standard input do not fit: {error}") from error
