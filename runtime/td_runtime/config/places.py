"""Values of the config file that name a place: folders, addresses, and where a secret is kept."""
# ruff: noqa: ARG002, D102  the contract of `says`, `read`, `from_text` and `show` is Rule's

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from td_runtime.config.rules import RefusedError, Rule, Site
from td_runtime.secret import Secret

__all__ = ["Folder", "Listen", "ListenAddress", "Origins", "SecretKey", "Url"]

_LISTEN: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Folder(Rule[Path]):
    """A path; a relative one starts at the config file's folder, `~` is the user's home."""

    absent: str = ""

    def says(self) -> str:
        return "a path, absolute, relative to the config file's folder, or starting with ~"

    def read(self, value: object, site: Site) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.refuse()
        path = os.path.expanduser(value)
        if path.startswith("~"):
            raise RefusedError("starts with a home folder that does not exist")

        return Path(os.path.normpath(site.folder / path))


@dataclass(frozen=True, slots=True)
class Url(Rule[str]):
    """The word "embedded" or an http(s) URL without credentials, query and fragment."""

    def says(self) -> str:
        return '"embedded" or a URL such as "https://api.trigger.dev"'

    def read(self, value: object, site: Site) -> str:
        if value == "embedded":
            return "embedded"
        url = _split_url(value)
        if url is None or url.scheme not in ("http", "https") or not url.hostname:
            raise self.refuse()
        if url.query or url.fragment or url.username is not None:
            raise RefusedError(f"{self.refuse()}, without credentials, query and fragment")

        return str(value).rstrip("/")

    def show(self, value: object) -> str:
        if isinstance(value, str) and "@" in value:
            return '"' + re.sub(r"[^/]*@", "***@", value, count=1) + '"'

        return Rule.show(self, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """Host and port to listen at."""

    host: str
    """A host name or an address, without brackets."""
    port: int
    """0: chosen once a data folder, then kept."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listen(Rule[ListenAddress]):
    """HOST:PORT, an IPv6 host in brackets."""

    def says(self) -> str:
        return '"HOST:PORT" with a port from 0 to 65535, such as "127.0.0.1:0" or "[::1]:8080"'

    def read(self, value: object, site: Site) -> ListenAddress:
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match["port"]) > 65_535:
            raise self.refuse()
        host = match["host"].strip("[]")
        if ":" in host and not _is_ip(host):
            raise self.refuse()

        return ListenAddress(host=host, port=int(match["port"]))


@dataclass(frozen=True, slots=True)
class Origins(Rule[tuple[str, ...]]):
    """A list of origins: scheme, host and, where it is not the scheme's own, port."""

    def says(self) -> str:
        return 'a list of origins such as ["https://app.example.com", "http://localhost:3000"]'

    def read(self, value: object, site: Site) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.refuse()

        return tuple(self._read_one(one) for one in value)

    def from_text(self, text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    def _read_one(self, value: object) -> str:
        url = _split_url(value)
        if url is None or url.scheme not in ("http", "https") or not url.hostname:
            raise self.refuse()
        if url.username is not None or url.path.strip("/") or url.query or url.fragment:
            raise RefusedError(f"{self.refuse()}, without credentials, path, query and fragment")

        # As a browser spells it: in small letters, without the port that goes without saying.
        default = {"http": 80, "https": 443}[url.scheme]
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        port = "" if url.port in (None, default) else f":{url.port}"

        return f"{url.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class SecretKey(Rule[Secret]):
    """A secret: the string itself, `{env = "NAME"}` or `{file = "PATH"}`. Never repeated."""

    def says(self) -> str:
        return 'a non-empty string, {env = "NAME"} or {file = "PATH"}'

    def read(self, value: object, site: Site) -> Secret:
        if isinstance(value, str) and value.strip():
            return Secret(value.strip())
        if not isinstance(value, dict) or len(value) != 1:
            raise self.refuse()
        source, name = next(iter(value.items()))
        if source not in ("env", "file") or not isinstance(name, str) or not name:
            raise self.refuse()

        return _secret_from_env(name, site) if source == "env" else _secret_from_file(name, site)

    def show(self, value: object) -> str:
        # A reference is shown, for it says where to look; the secret itself is not.
        is_reference = isinstance(value, dict) and value.keys() <= {"env", "file"}

        return Rule.show(self, value) if is_reference else '"***"'


def _split_url(value: object) -> SplitResult | None:
    """A string taken apart as a URL; None if it cannot be one."""
    if not isinstance(value, str) or re.search(r"\s", value):
        return None
    try:
        url = urlsplit(value)
        _ = url.port  # the port is parsed lazily, and "http://x:port" must be refused here
    except ValueError:
        return None

    return url


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False

    return True


def _secret_from_env(name: str, site: Site) -> Secret:
    text = site.env.get(name, "").strip()
    if not text:
        raise RefusedError(f"names the environment variable {name}, which is not set")

    return Secret(text)


def _secret_from_file(name: str, site: Site) -> Secret:
    path = Folder().read(name, site)
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise RefusedError(f"names the file {path}, which cannot be read: {reason}") from error
    if not text:
        raise RefusedError(f"names the file {path}, which is empty")

    return Secret(text)
