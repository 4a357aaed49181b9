"""What can be configured of a stream, and of a basin for its streams."""

from typing import Annotated, Any, Final, Literal

import msgspec

from td_runtime.gateway.errors import ConfigInvalidError

RETENTION_S: Final = 30 * 24 * 3600
"""How long records are kept if their stream does not say."""

Mode = Literal["client-prefer", "client-require", "arrival"]
Number = Annotated[int, msgspec.Meta(ge=0)]


class Timestamping(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose timestamps count, and whether they may lie in the future."""

    mode: Mode | None = None
    uncapped: bool | None = None


class DeleteOnEmpty(msgspec.Struct, frozen=True):
    """Delete the stream when it has held nothing for so long; 0 is never."""

    min_age_secs: Number = 0


class RetentionPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long records are kept, in seconds."""

    age: Number | None = None
    infinite: dict[str, Any] | None = None


class StreamConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream's configuration; what is None is as the store has it."""

    storage_class: str | None = None
    retention_policy: RetentionPolicy | None = None
    timestamping: Timestamping | None = None
    delete_on_empty: DeleteOnEmpty | None = None

    @property
    def mode(self) -> Mode:
        """Whose timestamps count."""
        return (self.timestamping and self.timestamping.mode) or "client-prefer"

    @property
    def is_uncapped(self) -> bool:
        """Whether timestamps may lie in the future."""
        return bool(self.timestamping and self.timestamping.uncapped)

    @property
    def retention_s(self) -> int | None:
        """How long records are kept, in seconds; None for ever."""
        policy = self.retention_policy
        return RETENTION_S if policy is None else policy.age

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            ConfigInvalidError: Records would be kept for no time, or for two times.
        """
        policy = self.retention_policy
        if policy is None:
            return
        if (policy.age is None) == (policy.infinite is None) or policy.age == 0:
            raise ConfigInvalidError(
                'a `retention_policy` is `{"age": seconds}`, at least 1, or `{"infinite": {}}`'
            )

    def over(self, base: "StreamConfig") -> "StreamConfig":
        """This one, with what it leaves open taken from ``base``."""
        ours, theirs = self.timestamping or Timestamping(), base.timestamping or Timestamping()
        return StreamConfig(
            self.storage_class or base.storage_class,
            self.retention_policy or base.retention_policy,
            Timestamping(
                ours.mode or theirs.mode,
                theirs.uncapped if ours.uncapped is None else ours.uncapped,
            ),
            self.delete_on_empty or base.delete_on_empty,
        )

    def complete(self) -> dict[str, object]:
        """The configuration in force, as S2 shows it."""
        return {
            "storage_class": self.storage_class or "express",
            "retention_policy": (
                {"infinite": {}} if self.retention_s is None else {"age": self.retention_s}
            ),
            "timestamping": {"mode": self.mode, "uncapped": self.is_uncapped},
            "delete_on_empty": {
                "min_age_secs": self.delete_on_empty.min_age_secs if self.delete_on_empty else 0
            },
        }


class BasinConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """A basin's configuration."""

    create_stream_on_append: bool | None = None
    create_stream_on_read: bool | None = None
    default_stream_config: StreamConfig | None = None
    stream_cipher: str | None = None

    def check(self) -> None:
        """Refuse what the store cannot do.

        Raises:
            ConfigInvalidError: See ``StreamConfig.check``; or records would have to be encrypted.
        """
        if self.stream_cipher is not None:
            raise ConfigInvalidError("the embedded stream store does not encrypt records")
        if self.default_stream_config is not None:
            self.default_stream_config.check()

    def over(self, base: "BasinConfig") -> "BasinConfig":
        """This one, with what it leaves open taken from ``base``."""
        ours, theirs = self.default_stream_config, base.default_stream_config
        return BasinConfig(
            base.create_stream_on_append
            if self.create_stream_on_append is None
            else self.create_stream_on_append,
            base.create_stream_on_read
            if self.create_stream_on_read is None
            else self.create_stream_on_read,
            ours.over(theirs) if ours and theirs else ours or theirs,
        )

    def complete(self) -> dict[str, object]:
        """The configuration in force, as S2 shows it."""
        return {
            "create_stream_on_append": bool(self.create_stream_on_append),
            "create_stream_on_read": bool(self.create_stream_on_read),
            "default_stream_config": (self.default_stream_config or StreamConfig()).complete(),
        }


DEFAULT: Final = StreamConfig()
_decode = msgspec.json.Decoder(StreamConfig).decode


def parse_config(text: str) -> StreamConfig:
    """A configuration as it is stored; ``DEFAULT`` itself if nothing is configured."""
    return DEFAULT if text == "{}" else _decode(text)


def encode_config(config: StreamConfig) -> str:
    """A configuration as it is stored."""
    return msgspec.json.encode(config).decode()
