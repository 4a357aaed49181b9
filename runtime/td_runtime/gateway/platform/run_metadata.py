"""Changes of a run's metadata, as official clients send them."""

from typing import Any, Literal

import msgspec

Change = Literal["set", "delete", "append", "remove", "increment", "update"]


class Operation(msgspec.Struct):
    """One change. A key that begins with ``$.`` is a path of keys."""

    type: Change
    key: str = ""
    value: Any = None


class MetadataBody(msgspec.Struct, rename="camel"):
    """The body of PUT metadata: new metadata, or changes to what is there."""

    metadata: dict[str, Any] | None = None
    operations: list[Operation] = []
    parent_operations: list[Operation] = []
    root_operations: list[Operation] = []


def apply(metadata: dict[str, Any], operations: list[Operation]) -> dict[str, Any]:
    """Return *metadata* with the changes made; one that does not fit changes nothing."""
    for operation in operations:
        if operation.type == "update":
            metadata = operation.value if isinstance(operation.value, dict) else metadata
            continue
        *path, key = _path(operation.key)
        place = _descend(metadata, path, make=operation.type in {"set", "append", "increment"})
        if place is not None:
            _apply_one(place, key, operation)

    return metadata


def _apply_one(place: dict[str, Any], key: str, operation: Operation) -> None:
    there, value = place.get(key), operation.value
    match operation.type:
        case "set":
            place[key] = value
        case "delete":
            place.pop(key, None)
        case "append":
            before = there if isinstance(there, list) else [] if there is None else [there]
            place[key] = [*before, value]
        case "remove" if isinstance(there, list):
            place[key] = [each for each in there if each != value]
        case "increment" if isinstance(value, int | float):
            place[key] = (there if isinstance(there, int | float) else 0) + value


def _path(key: str) -> list[str]:
    return key[2:].split(".") if key.startswith("$.") else [key]


def _descend(place: Any, path: list[str], *, make: bool) -> dict[str, Any] | None:
    for key in path:
        if make and isinstance(place, dict):
            place.setdefault(key, {})
        place = place.get(key) if isinstance(place, dict) else None

    return place if isinstance(place, dict) else None
