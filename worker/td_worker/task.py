"""A task: registered code. Found by its entrypoint, looked at, and called."""

import difflib
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from td_worker.errors import TaskLoadError, TaskPayloadError
from td_worker.hooks import HookError, HookSet, load_hooks
from td_worker.retry import RetryPolicy

__all__ = ["Task", "TaskFacts", "TaskSpec", "load_task"]


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has to know of one registered task."""

    id: str
    entrypoint: str
    """``module:function``; the function may be dotted (``module:Class.method``)."""
    max_duration: float | None = None
    """Seconds one attempt may take."""
    fail_on_stream_loss: bool = False
    is_loop: bool = False
    """Never ends by itself: a drain does not wait for it."""
    retry: RetryPolicy = RetryPolicy()
    shared_hooks: tuple[str, ...] = ()
    """Where the hooks of all tasks are: ``module`` or ``module:object``."""
    hooks: tuple[str, ...] = ()
    """Where this task's own are."""


class PayloadDecoder(Protocol):
    """What turns a payload into what the function takes."""

    def decode(self, payload: bytes, /) -> Any:
        """Return what the function is called with.

        Raises:
            msgspec.MsgspecError: The payload does not fit.
        """
        ...


class _PydanticDecoder:
    """Decodes into a pydantic model, which msgspec cannot. Pydantic is the task's, not ours."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def decode(self, payload: bytes, /) -> Any:
        try:
            return self._model.model_validate_json(payload)
        except ValueError as error:
            problems: list[Any] = getattr(error, "errors", list)()
            shown = "; ".join(f"{each['msg']} - at `{_path(each['loc'])}`" for each in problems)
            raise msgspec.ValidationError(shown or str(error)) from error


def _path(keys: Iterable[Any]) -> str:
    """Return where a value is, as msgspec writes it."""
    return "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What looking at a task found out; plain data, so that it crosses a process boundary."""

    id: str
    entrypoint: str
    signature: str
    is_async: bool
    payload_schema: dict[str, Any] | None = None
    """JSON schema of the payload's type hint, where it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Registered code, imported and checked."""

    spec: TaskSpec
    function: Callable[[Any], Any]
    is_async: bool
    payload_type: Any
    decoder: PayloadDecoder
    hooks: HookSet = field(default_factory=HookSet)

    def decode(self, payload: bytes) -> Any:
        """Return the payload as the type that the function's hint names.

        Raises:
            TaskPayloadError: It is not JSON, or does not fit; the message names key and value.
        """
        try:
            return self.decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise TaskPayloadError(self.spec.id, str(error), payload) from error

    def facts(self) -> TaskFacts:
        """Return what is known of this task as plain data."""
        return TaskFacts(
            id=self.spec.id,
            entrypoint=self.spec.entrypoint,
            signature=f"{_name(self)}{inspect.signature(self.function)}",
            is_async=self.is_async,
            payload_schema=_schema(self.payload_type),
        )


def load_task(spec: TaskSpec) -> Task:
    """Import the entrypoint of *spec* and check that it can be called with a payload.

    Runs the module's code: only ever in a forked child, never in the supervisor.

    Raises:
        TaskLoadError: The module cannot be imported, has no such attribute, or the attribute is
            not a function of one argument. The message names the nearest valid name.
    """
    module_name, _, path = spec.entrypoint.partition(":")
    module = _import_module(spec, module_name)
    function = _find_attribute(spec, module, path)
    _check_signature(spec, function)
    payload_type, decoder = _payload_decoder(function)

    return Task(
        spec=spec,
        function=function,
        is_async=_is_async(function),
        payload_type=payload_type,
        decoder=decoder,
        hooks=_find_hooks(spec),
    )


def _find_hooks(spec: TaskSpec) -> HookSet:
    try:
        return load_hooks(spec.shared_hooks, spec.hooks)
    except HookError as error:
        raise _refusal(spec, f"hooks: {error}") from error


def _name(task: Task) -> str:
    """Return the function's name; a callable object has none but where it was found."""
    found: str = getattr(task.function, "__name__", task.spec.entrypoint.rpartition(":")[2])

    return found


def _is_async(function: Any) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004  not whether, but which one

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _refusal(spec: TaskSpec, reason: str) -> TaskLoadError:
    return TaskLoadError(spec.id, spec.entrypoint, reason)


def _import_module(spec: TaskSpec, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not (name == error.name or name.startswith(f"{error.name}.")):
            raise _refusal(spec, f"importing {name!r} failed: {error}") from error
        hint = _nearest(name, _importable_names())
        raise _refusal(spec, f"there is no module {name!r}{hint}") from error
    # Whatever task code does at import, a sys.exit() included, is that task's failure and
    # must be told as such.
    except BaseException as error:
        kind = type(error).__name__
        raise _refusal(spec, f"importing {name!r} raised {kind}: {error}") from error


def _find_attribute(spec: TaskSpec, module: Any, path: str) -> Any:
    found = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            hint = _nearest(name, [n for n in dir(found) if not n.startswith("__")])
            where = getattr(module, "__file__", None) or module.__name__
            raise _refusal(spec, f"{where} has no {path!r}{hint}") from error

    return found


def _check_signature(spec: TaskSpec, function: Any) -> None:
    if not callable(function):
        raise _refusal(spec, f"{spec.entrypoint!r} is {type(function).__name__}, no function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise _refusal(
            spec,
            f"{spec.entrypoint!r} is a generator; a task returns its output "
            "and streams chunks through td_worker.streams",
        )
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError) as error:
        shown = f"{spec.entrypoint}{_signature_text(function)}"
        raise _refusal(
            spec, f"{shown} cannot be called with one argument, the payload: {error}"
        ) from error


def _signature_text(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(…)"


def _payload_decoder(function: Any) -> tuple[Any, PayloadDecoder]:
    """Return the payload's type and a decoder; a hint msgspec cannot decode counts as none."""
    payload_type = _payload_hint(function)
    if hasattr(payload_type, "model_validate_json"):
        return payload_type, _PydanticDecoder(payload_type)
    try:
        return payload_type, msgspec.json.Decoder(payload_type)
    # As below: a field's hint may name what is imported for type checkers only.
    except Exception:  # noqa: BLE001
        return Any, msgspec.json.Decoder()


def _payload_hint(function: Any) -> Any:
    try:
        hints = typing.get_type_hints(function)
        first = next(iter(inspect.signature(function).parameters))
    # A hint is text that task code may have got wrong in any way; it only ever refines decoding.
    except Exception:  # noqa: BLE001
        return Any

    return hints.get(first, Any)


def _schema(payload_type: Any) -> dict[str, Any] | None:
    if payload_type is Any:
        return None
    if hasattr(payload_type, "model_json_schema"):
        schema: dict[str, Any] = payload_type.model_json_schema()
        return schema
    try:
        return msgspec.json.schema(payload_type)
    except TypeError:
        return None


def _importable_names() -> list[str]:
    """Names of modules next to the config file, the likeliest thing a misspelt name meant."""
    import pkgutil

    return [module.name for module in pkgutil.iter_modules(sys.path[-1:])]


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)

    return f"; did you mean {close[0]!r}?" if close else ""
