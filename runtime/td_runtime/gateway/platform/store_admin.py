"""What S2's clients administer: basins, their streams, and access tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar
from urllib.parse import unquote

import msgspec

from td_runtime.gateway.errors import (
    ConfigInvalidError,
    HeaderInvalidError,
    NameTakenError,
    PermissionDeniedError,
)
from td_runtime.gateway.exchange import Exchange, Reply, json_reply
from td_runtime.gateway.platform import dialect
from td_runtime.gateway.platform.basins import LOCATION, Basin, Basins, rfc3339
from td_runtime.gateway.platform.holder import Holder
from td_runtime.gateway.platform.issued_tokens import IssuedTokens, TokenInfo, show
from td_runtime.gateway.platform.queries import PageQuery, parse_page
from td_runtime.gateway.platform.rights import OWNER
from td_runtime.gateway.platform.stream_config import (
    DEFAULT,
    BasinConfig,
    StreamConfig,
    encode_config,
    parse_config,
)
from td_runtime.gateway.platform.streams import (
    NAME_BYTES_MAX,
    Creation,
    StreamInfo,
    Streams,
)

T = TypeVar("T")

PREFIX: Final = "/v1/"
PLACE: Final = {"name": LOCATION, "is_private": True}
_NOT_IMPLEMENTED: Final = json_reply(
    501, {"code": "not_implemented", "message": "the embedded stream store keeps no metrics"}
)
_UNCHANGED: Final = "noop"
_UPDATED: Final = "updated"
_CREATED: Final = "created"


class CreateBasin(msgspec.Struct):
    """The body that creates a basin."""

    basin: str
    config: BasinConfig | None = None
    location: str | None = None


class EnsureBasin(msgspec.Struct):
    """The body that ensures a basin; without a configuration it only has to be there."""

    config: BasinConfig | None = None
    location: str | None = None


class CreateStream(msgspec.Struct):
    """The body that creates a stream."""

    stream: str
    config: StreamConfig | None = None


class StoreAdmin:
    """Answers what is not about records."""

    def __init__(self, *, basins: Basins, streams: Streams, issued: IssuedTokens) -> None:
        self._basins = basins
        self._streams = streams
        self._issued = issued

    async def answer(self, exchange: Exchange, holder: Holder) -> Reply:
        """Answer one request.

        Raises:
            GatewayError: It is refused.
            msgspec.DecodeError: Its body does not fit.
        """
        path = [unquote(part) for part in exchange.raw_path.removeprefix(PREFIX).split("/")]
        match exchange.method, path:
            case _, ["basins"]:
                return await self._basins_route(exchange, holder)
            case _, ["basins", name] if name:
                return await self._basin_route(exchange, holder, name)
            case _, ["streams"]:
                return await self._streams_route(exchange, holder)
            case _, ["streams", name] if name:
                return await self._stream_route(exchange, holder, name)
            case _, ["access-tokens"]:
                return await self._tokens_route(exchange, holder)
            case "DELETE", ["access-tokens", token_id] if token_id:
                return await self._revoke(holder, token_id)
            case _, ["locations", *rest]:
                return await self._locations_route(exchange, holder, rest)
            case _, ["metrics", *_]:
                return _NOT_IMPLEMENTED

        return Reply(404)

    async def _locations_route(self, exchange: Exchange, holder: Holder, rest: list[str]) -> Reply:
        match exchange.method, rest:
            case "GET", []:
                holder.rights.require({"list-locations"})
                return json_reply(200, [PLACE])
            case "GET", ["default"]:
                holder.rights.require({"get-default-location"})
                return json_reply(200, PLACE)
            case "PUT", ["default"]:
                holder.rights.require({"set-default-location"})
                _check_location(msgspec.json.decode(await dialect.read_body(exchange), type=str))
                return json_reply(200, PLACE)

        return Reply(404)

    async def _basins_route(self, exchange: Exchange, holder: Holder) -> Reply:
        match exchange.method:
            case "GET":
                return self._list_basins(exchange, holder)
            case "POST":
                return await self._create_basin(exchange, holder)

        return _not_allowed("GET, POST")

    def _list_basins(self, exchange: Exchange, holder: Holder) -> Reply:
        holder.rights.require({"list-basins"})
        page = parse_page(exchange.query)
        names = [basin for basin in self._basins.all() if holder.rights.basins.allows(basin.name)]
        chosen, has_more = _cut(page, names, lambda basin: basin.name)

        return json_reply(
            200, {"basins": [basin.to_dict() for basin in chosen], "has_more": has_more}
        )

    async def _create_basin(self, exchange: Exchange, holder: Holder) -> Reply:
        asked = msgspec.json.decode(await dialect.read_body(exchange), type=CreateBasin)
        holder.rights.require({"create-basin"})
        holder.rights.require_basin(asked.basin)
        _check_location(asked.location)
        basin = await self._basins.create(
            asked.basin, asked.config or BasinConfig(), exchange.headers.get("s2-request-token")
        )

        return json_reply(201, basin.to_dict())

    async def _basin_route(self, exchange: Exchange, holder: Holder, name: str) -> Reply:
        holder.rights.require_basin(name)
        match exchange.method:
            case "GET":
                holder.rights.require({"get-basin-config"})
                return json_reply(200, self._basins.get(name).config.complete())
            case "PUT":
                return await self._ensure_basin(exchange, holder, name)
            case "PATCH":
                holder.rights.require({"reconfigure-basin"})
                asked = await _decode_body(exchange, BasinConfig)
                basin = self._basins.get(name)
                basin = await self._basins.configure(name, asked.over(basin.config))
                return json_reply(200, basin.config.complete())
            case "DELETE":
                return await self._delete_basin(holder, name)

        return _not_allowed("GET, PUT, PATCH, DELETE")

    async def _ensure_basin(self, exchange: Exchange, holder: Holder, name: str) -> Reply:
        holder.rights.require({"create-basin"})
        asked = await _decode_body(exchange, EnsureBasin)
        _check_location(asked.location)
        basin = self._basins.find(name)
        if basin is None:
            basin = await self._basins.create(name, asked.config or BasinConfig(), None)
            return _provisioned(_CREATED, basin.to_dict())
        if asked.config is None or asked.config.complete() == basin.config.complete():
            return _provisioned(_UNCHANGED, basin.to_dict())
        holder.rights.require({"reconfigure-basin"})
        await self._basins.configure(name, asked.config)

        return _provisioned(_UPDATED, basin.to_dict())

    async def _delete_basin(self, holder: Holder, name: str) -> Reply:
        holder.rights.require({"delete-basin"})
        prefix = self._basins.get(name).store_prefix
        await self._basins.delete(name)
        while found := await self._streams.list_page(prefix, after="", limit=100):
            for stream in found:
                await self._streams.delete(stream.name)

        return Reply(202)

    async def _streams_route(self, exchange: Exchange, holder: Holder) -> Reply:
        basin = self.basin_of(exchange, holder)
        match exchange.method:
            case "GET":
                return await self._list_streams(exchange, holder, basin)
            case "POST":
                return await self._create_stream(exchange, holder, basin)

        return _not_allowed("GET, POST")

    async def _list_streams(self, exchange: Exchange, holder: Holder, basin: Basin) -> Reply:
        holder.rights.require({"list-streams"})
        rights, page = holder.rights, parse_page(exchange.query)
        names = rights.streams
        # A token sees what its scope names, and no more of a name than it would say itself.
        allowed = names.prefix if names.prefix is not None else names.exact or "\0"
        asked = rights.prefix + page.prefix
        if not (asked.startswith(allowed) or allowed.startswith(asked)):
            return json_reply(200, {"streams": [], "has_more": False})
        found = await self._streams.list_page(
            basin.store_name(max(asked, allowed, key=len)),
            after=basin.store_name(rights.prefix + page.after) if page.after else "",
            limit=page.limit + 1,
        )
        found = [one for one in found if rights.streams.allows(_own_name(one, basin))]
        shown = [_show(one, basin, rights.prefix) for one in found[: page.limit]]

        return json_reply(200, {"streams": shown, "has_more": len(found) > page.limit})

    async def _create_stream(self, exchange: Exchange, holder: Holder, basin: Basin) -> Reply:
        asked = msgspec.json.decode(await dialect.read_body(exchange), type=CreateStream)
        holder.rights.require({"create-stream"})
        name = basin.store_name(holder.rights.resolve(check_name(asked.stream)))
        token = exchange.headers.get("s2-request-token")
        info = await self._streams.create(name, _creation(asked.config, basin, token))

        return json_reply(201, _show(info, basin, holder.rights.prefix))

    async def _stream_route(self, exchange: Exchange, holder: Holder, stream: str) -> Reply:
        basin = self.basin_of(exchange, holder)
        name = basin.store_name(holder.rights.resolve(check_name(stream)))
        match exchange.method:
            case "GET":
                holder.rights.require({"get-stream-config"})
                info = await self._streams.look_up(name)
                return json_reply(200, parse_config(info.config).complete())
            case "PUT":
                return await self._ensure_stream(exchange, holder, basin, name)
            case "PATCH":
                return await self._reconfigure_stream(exchange, holder, name)
            case "DELETE":
                holder.rights.require({"delete-stream"})
                await self._streams.delete(name)
                return Reply(202)

        return _not_allowed("GET, PUT, PATCH, DELETE")

    async def _ensure_stream(
        self, exchange: Exchange, holder: Holder, basin: Basin, name: str
    ) -> Reply:
        holder.rights.require({"create-stream"})
        asked = await _decode_body(exchange, StreamConfig)
        creation = _creation(asked, basin, None)
        try:
            info = await self._streams.create(name, creation)
        except NameTakenError:
            info = await self._streams.look_up(name)
        else:
            return _provisioned(_CREATED, _show(info, basin, holder.rights.prefix))
        shown = _show(info, basin, holder.rights.prefix)
        is_same = parse_config(creation.config).complete() == parse_config(info.config).complete()
        if asked == DEFAULT or is_same:
            return _provisioned(_UNCHANGED, shown)
        holder.rights.require({"reconfigure-stream"})
        await self._streams.configure(name, creation.config)

        return _provisioned(_UPDATED, shown)

    async def _reconfigure_stream(self, exchange: Exchange, holder: Holder, name: str) -> Reply:
        holder.rights.require({"reconfigure-stream"})
        asked = await _decode_body(exchange, StreamConfig)
        asked.check()
        info = await self._streams.look_up(name)
        config = asked.over(parse_config(info.config))
        await self._streams.configure(name, encode_config(config))

        return json_reply(200, config.complete())

    async def _tokens_route(self, exchange: Exchange, holder: Holder) -> Reply:
        match exchange.method:
            case "GET":
                return self._list_tokens(exchange, holder)
            case "POST":
                return await self._issue(exchange, holder)

        return _not_allowed("GET, POST")

    def _list_tokens(self, exchange: Exchange, holder: Holder) -> Reply:
        holder.rights.require({"list-access-tokens"})
        allowed = holder.rights.access_tokens
        infos = [info for info in self._issued.all() if allowed.allows(info.id)]
        chosen, has_more = _cut(parse_page(exchange.query), infos, lambda info: info.id)

        return json_reply(
            200, {"access_tokens": [show(info) for info in chosen], "has_more": has_more}
        )

    async def _issue(self, exchange: Exchange, holder: Holder) -> Reply:
        if holder.rights is not OWNER:
            raise PermissionDeniedError("access tokens are issued to the secret key alone")
        info = msgspec.json.decode(await dialect.read_body(exchange), type=TokenInfo)

        return json_reply(201, {"access_token": await self._issued.issue(info)})

    async def _revoke(self, holder: Holder, token_id: str) -> Reply:
        holder.rights.require({"revoke-access-token"})
        if not holder.rights.access_tokens.allows(token_id):
            raise PermissionDeniedError(f"this token may not revoke access token `{token_id}`")
        await self._issued.revoke(token_id)

        return Reply(204)

    def basin_of(self, exchange: Exchange, holder: Holder) -> Basin:
        """The basin that a request's header names.

        Raises:
            HeaderInvalidError: It names none.
            BasinNotFoundError: There is none of that name.
            PermissionDeniedError: The token is not good for it.
        """
        name = exchange.headers.get("s2-basin")
        if name is None:
            raise HeaderInvalidError("missing header `s2-basin`")
        holder.rights.require_basin(name)

        return self._basins.get(name)


def check_name(stream: str) -> str:
    """A stream's name.

    Raises:
        HeaderInvalidError: It is none.
    """
    if not 1 <= len(stream.encode()) <= NAME_BYTES_MAX or "\0" in stream:
        raise HeaderInvalidError(f"a stream's name has 1 to {NAME_BYTES_MAX} bytes, no NUL")

    return stream


def _check_location(location: str | None) -> None:
    if location not in {None, LOCATION}:
        raise ConfigInvalidError(f"location `{location}` is not known; there is only `{LOCATION}`")


def _creation(config: StreamConfig | None, basin: Basin, token: str | None) -> Creation:
    asked, defaults = config or DEFAULT, basin.config.default_stream_config or DEFAULT
    asked.check()
    if asked == DEFAULT and defaults == DEFAULT:
        return Creation(request_token=token)

    return Creation(encode_config(asked.over(defaults)), token)


def _own_name(info: StreamInfo, basin: Basin) -> str:
    return info.name.removeprefix(basin.store_prefix)


def _show(info: StreamInfo, basin: Basin, prefix: str) -> dict[str, object]:
    name = _own_name(info, basin).removeprefix(prefix)
    return {"name": name, "created_at": rfc3339(info.created_at), "deleted_at": None}


def _cut(page: PageQuery, items: Sequence[T], name_of: Callable[[T], str]) -> tuple[list[T], bool]:
    """What a page shows of items that are sorted by name, and whether more follow."""
    matching = [
        item
        for item in items
        if name_of(item).startswith(page.prefix) and name_of(item) > page.after
    ]
    return matching[: page.limit], len(matching) > page.limit


async def _decode_body(exchange: Exchange, kind: type[T]) -> T:
    """A body of JSON that may be left out, or be null: then everything is left open."""
    body = await dialect.read_body(exchange)
    document = msgspec.json.decode(body, type=kind | None) if body else None

    return document if document is not None else kind()


def _provisioned(result: str, document: object) -> Reply:
    status = 201 if result == _CREATED else 200
    return json_reply(status, document, [("s2-provision-result", result)])


def _not_allowed(allow: str) -> Reply:
    return Reply(405, headers=(("allow", allow),))
