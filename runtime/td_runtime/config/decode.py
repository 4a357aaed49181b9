"""From the tables of a TOML file to a checked `Config`, with every problem named at once.

The model's annotations say what each value must be; this module walks them. It reads no file: the
tables and the environment are handed in.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from td_runtime.config.model import (
    Config,
    ControlPlaneConfig,
    CredentialsConfig,
    GatewayConfig,
    LimitsConfig,
    LogConfig,
    RetryConfig,
    RuntimeConfig,
    StoreConfig,
    TaskConfig,
)
from td_runtime.config.rules import RefusedError, Rule, Site

__all__ = ["SECTIONS", "Decoder", "find_rules", "list_keys"]

T = TypeVar("T")

#: The tables of the file but `[[tasks]]`, by name.
SECTIONS: Final[dict[str, type[Any]]] = {
    "runtime": RuntimeConfig,
    "control_plane": ControlPlaneConfig,
    "credentials": CredentialsConfig,
    "gateway": GatewayConfig,
    "log": LogConfig,
    "limits": LimitsConfig,
    "store": StoreConfig,
}
_VARIABLE: Final = "TD_RUNTIME_"
_SECRET_NAME: Final = re.compile(r"secret|token|password|key|^control_plane$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A value and who gave it: `source` is a file or a variable."""

    value: object
    source: str


def find_rules(table: type[Any]) -> dict[str, Rule[Any] | None]:
    """The keys of a table in order, each with its rule; None for a table inside it."""
    hints = typing.get_type_hints(table, include_extras=True)

    return {
        field.name: next(iter(getattr(hints[field.name], "__metadata__", ())), None)
        for field in dataclasses.fields(table)
    }


def list_keys() -> Iterator[str]:
    """Every key path of the file, such as `runtime.workers` or `tasks.retry.factor`."""
    tables = {**SECTIONS, "tasks": TaskConfig, "tasks.retry": RetryConfig}
    for name, table in tables.items():
        yield from (f"{name}.{key}" for key, rule in find_rules(table).items() if rule)


class Decoder:
    """Decodes one file; `problems` has one line for each thing wrong with it."""

    def __init__(self, path: Path, env: Mapping[str, str]) -> None:
        self._path = path
        self._site = Site(folder=path.parent, env=env)
        self._overrides: dict[str, Found] = {}
        self._variables: set[str] = set()
        self.problems: list[str] = []

    def decode(self, tables: dict[str, object]) -> Config | None:
        """Give the config, or None when `problems` is not empty."""
        self._read_variables()
        self._honour_trigger_variables(tables)
        self._refuse_unknown(tables, at="", known=[*SECTIONS, "tasks"])
        sections = {
            name: self._decode_section(table, tables.get(name, {}), name)
            for name, table in SECTIONS.items()
        }
        tasks = self._decode_tasks(tables.get("tasks", []))
        if not self.problems:
            self._check_places(tasks, typing.cast("RuntimeConfig", sections["runtime"]))
        if self.problems:
            return None

        return Config(
            path=self._path,
            tasks=tasks,
            secret_variables=frozenset(self._variables),
            **typing.cast("dict[str, Any]", sections),
        )

    # Where values come from

    def _read_variables(self) -> None:
        """Collect `TD_RUNTIME_<SECTION>__<KEY>`, and refuse those that name no setting."""
        known = {_variable_of(path): path for path in list_keys() if not path.startswith("tasks.")}
        for variable, text in sorted(self._site.env.items()):
            if not variable.startswith(_VARIABLE) or "__" not in variable:
                continue
            if variable in known:
                self._override(known[variable], variable, text)
            else:
                shown = _show_unknown(variable, text)
                hint = _suggest(variable, list(known))
                self.problems.append(
                    f"environment variable {variable} = {shown}: names no setting{hint}"
                )

    def _override(self, path: str, variable: str, text: str) -> None:
        section, _, key = path.partition(".")
        rule = find_rules(SECTIONS[section])[key]
        assert rule is not None  # noqa: S101  list_keys gives only keys that have one
        self._overrides[path] = Found(rule.from_text(text), f"environment variable {variable}")
        if path == "control_plane.secret_key":
            self._variables.add(variable)

    def _honour_trigger_variables(self, tables: dict[str, object]) -> None:
        """Let the variables of Trigger.dev's own tools fill in what nobody else said.

        The key belongs to the URL: an embedded control plane has its own, and taking another
        project's from the shell would lock its clients out.
        """
        plane = tables.get("control_plane", {})
        if not isinstance(plane, dict):
            return
        env = self._site.env
        if env.get("TRIGGER_API_URL") and not self._is_given("url", plane):
            self._override("control_plane.url", "TRIGGER_API_URL", env["TRIGGER_API_URL"])
        override = self._overrides.get("control_plane.url")
        url = override.value if override else plane.get("url", "embedded")
        if url == "embedded" or self._is_given("secret_key", plane):
            return
        if env.get("TRIGGER_SECRET_KEY"):
            self._override(
                "control_plane.secret_key", "TRIGGER_SECRET_KEY", env["TRIGGER_SECRET_KEY"]
            )

    def _is_given(self, key: str, plane: dict[str, object]) -> bool:
        return key in plane or f"control_plane.{key}" in self._overrides

    def _find(self, path: str, key: str, raw: dict[str, object], rule: Rule[Any]) -> Found | None:
        if path in self._overrides:
            return self._overrides[path]
        if key in raw:
            return Found(raw[key], str(self._path))
        if rule.absent is not None:
            return Found(rule.absent, str(self._path))

        return None

    # Tables

    def _decode_section(self, table: type[T], raw: object, name: str) -> T | None:
        if not isinstance(raw, dict):
            self._problem(name, raw, f"must be a table: write [{name}] above its keys")
            return None
        before = len(self.problems)
        values = self._decode_keys(table, raw, name)
        if len(self.problems) > before:
            return None
        section = table(**values)
        self._check(section, values)

        return section

    def _decode_keys(
        self, table: type[Any], raw: dict[str, object], at: str, label: str = ""
    ) -> dict[str, Any]:
        """Read every key of a table; keys that are refused or absent are left out."""
        rules = find_rules(table)
        self._refuse_unknown(raw, at=at, known=list(rules), label=label)
        values: dict[str, Any] = {}
        for key, rule in rules.items():
            found = self._find(f"{at}.{key}", key, raw, rule) if rule else None
            if rule is None or found is None:
                continue
            try:
                values[key] = rule.read(found.value, self._site)
            except RefusedError as error:
                self._refuse(f"{at}.{key}{label}", found, rule, error)
            self._note_reference(f"{at}.{key}", found.value)

        return values

    def _note_reference(self, path: str, value: object) -> None:
        if path == "control_plane.secret_key" and isinstance(value, dict) and "env" in value:
            self._variables.add(str(value["env"]))

    def _decode_tasks(self, raw: object) -> tuple[TaskConfig, ...]:
        if not isinstance(raw, list):
            self._problem("tasks", raw, "must be a list of tables: write [[tasks]], two brackets")
            return ()
        tasks = [self._decode_task(table, f"tasks[{index}]") for index, table in enumerate(raw)]
        self._refuse_twins(raw)

        return tuple(task for task in tasks if task is not None)

    def _decode_task(self, raw: object, at: str) -> TaskConfig | None:
        if not isinstance(raw, dict):
            self._problem(at, raw, "must be a table: write [[tasks]] above its keys")
            return None
        label = f' (task "{raw["id"]}")' if isinstance(raw.get("id"), str) else ""
        before = len(self.problems)
        values = self._decode_keys(TaskConfig, raw, at, label)
        for key in ("id", "entrypoint"):
            if key not in raw:
                self.problems.append(f"{self._path}: {at}.{key}{label}: is missing")
        values["retry"] = self._decode_retry(raw.get("retry", {}), f"{at}.retry", label)
        if values.get("replicas"):
            self._refuse_in_loops(raw, at, label)

        return TaskConfig(**values) if len(self.problems) == before else None

    def _refuse_in_loops(self, raw: dict[str, object], at: str, label: str) -> None:
        """Refuse what has no meaning for a task whose runs are kept alive for ever."""
        for key in ("cron", "ttl"):
            if key in raw:
                self._problem(
                    f"{at}.{key}{label}",
                    raw[key],
                    f"is not for a loop, and replicas = {raw['replicas']} makes it one",
                )

    def _decode_retry(self, raw: object, at: str, label: str) -> RetryConfig:
        if not isinstance(raw, dict):
            self._problem(at + label, raw, "must be a table such as {max_attempts = 3}")
            return RetryConfig()
        before = len(self.problems)
        values = self._decode_keys(RetryConfig, raw, at, label)
        retry = RetryConfig(**values)
        if len(self.problems) == before and retry.min_timeout > retry.max_timeout:
            self._problem(
                f"{at}.min_timeout{label}",
                raw.get("min_timeout", "1s"),
                f"must not exceed max_timeout, which is {raw.get('max_timeout', '60s')}",
            )

        return retry

    # What keys must be to each other

    def _check(self, section: object, values: dict[str, Any]) -> None:
        if isinstance(section, GatewayConfig):
            self._check_gateway(section)
        if isinstance(section, ControlPlaneConfig):
            self._check_control_plane(section, values)

    def _check_gateway(self, gateway: GatewayConfig) -> None:
        if gateway.listen.is_loopback or gateway.allow_other_interfaces:
            return
        self.problems.append(
            f'{self._source("gateway.listen")}: gateway.listen = "{gateway.listen}": is not a '
            "loopback address; say gateway.allow_other_interfaces = true if others may connect"
        )

    def _check_control_plane(self, plane: ControlPlaneConfig, values: dict[str, Any]) -> None:
        if plane.is_embedded or "secret_key" in values:
            return
        self.problems.append(
            f"{self._source('control_plane.url')}: control_plane.secret_key: is missing, and "
            f'control_plane.url = "{plane.url}" needs one; give it here as {{env = "NAME"}} or '
            '{file = "PATH"}, or set TRIGGER_SECRET_KEY'
        )

    def _check_places(self, tasks: tuple[TaskConfig, ...], runtime: RuntimeConfig) -> None:
        """Refuse loops that leave no place to any other run: nothing else would ever start."""
        places = runtime.workers * runtime.concurrency
        replicas = sum(task.replicas for task in tasks)
        others = any(task.replicas == 0 for task in tasks)
        if replicas > places - others:
            self.problems.append(
                f"{self._path}: tasks: the loops keep {replicas} replicas, and there are {places} "
                f"places (runtime.workers = {runtime.workers}, runtime.concurrency = "
                f"{runtime.concurrency}); other tasks need one, too"
            )

    def _refuse_twins(self, raw: list[Any]) -> None:
        first: dict[str, int] = {}
        for index, table in enumerate(raw):
            task_id = table.get("id") if isinstance(table, dict) else None
            if isinstance(task_id, str) and first.setdefault(task_id, index) != index:
                self._problem(
                    f"tasks[{index}].id", task_id, f"is already the id of tasks[{first[task_id]}]"
                )

    # Problems

    def _refuse(self, where: str, found: Found, rule: Rule[Any], error: RefusedError) -> None:
        self.problems.append(f"{found.source}: {where} = {rule.show(found.value)}: {error}")

    def _problem(self, where: str, value: object, what: str) -> None:
        self.problems.append(f"{self._path}: {where} = {_show_unknown(where, value)}: {what}")

    def _source(self, path: str) -> str:
        found = self._overrides.get(path)

        return found.source if found else str(self._path)

    def _refuse_unknown(
        self, raw: dict[str, object], *, at: str, known: list[str], label: str = ""
    ) -> None:
        for key in raw:
            if key in known:
                continue
            path = f"{at}.{key}" if at else key
            kind = "is not a key of this table" if at else "is not a table of this file"
            shown = _show_unknown(key, raw[key])
            hint = _suggest(key, known, at=at)
            self.problems.append(f"{self._path}: {path}{label} = {shown}: {kind}{hint}")


def _variable_of(path: str) -> str:
    """The environment variable that overrides a key path."""
    return _VARIABLE + path.replace(".", "__").upper()


def _suggest(name: str, known: list[str], at: str = "") -> str:
    """The nearest valid name, else the same name in another table, as the tail of a message."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{f"{at}.{near[0]}" if at else near[0]}"?'
    elsewhere = [path for path in list_keys() if path.rpartition(".")[2] == name]
    if elsewhere:
        return f'; did you mean "{elsewhere[0]}"?'

    return f"; known: {', '.join(known)}"


def _show_unknown(name: str, value: object) -> str:
    """The value of a key without a rule; what is named like a secret is masked."""
    return Rule[Any]().show(_mask(name, value))


def _mask(name: str, value: object) -> object:
    if isinstance(value, dict):
        return {key: _mask(key, item) for key, item in value.items()}
    if _SECRET_NAME.search(name) and isinstance(value, str | list):
        return "***"

    return value
