"""Who may do what: the secret key may do everything, a public access token what its scopes say.

A public access token is a JWT that anybody who has the secret key can make, the official SDK
among them: HS256 with the key itself, so that there is nothing to store and nothing to revoke.
"""

import functools
import hmac
import math
import time
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

import msgspec

from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.answers import RefusalError

ALGORITHM: Final = "HS256"
ISSUER: Final = "https://id.trigger.dev"
AUDIENCE: Final = "https://api.trigger.dev"
ENVIRONMENT: Final = "env_embedded"


class Caller(msgspec.Struct, frozen=True):
    """Whoever sends a request, after its bearer was found good."""

    is_secret: bool
    scopes: frozenset[str] = frozenset()
    is_one_time: bool = False
    """Good for one run that is triggered."""
    expires_at: float = math.inf
    """Epoch seconds."""

    def may(self, action: str, resource: str, ids: Iterable[str] = ()) -> bool:
        """Whether it may do ``action`` to any one of these ids of a resource.

        Args:
            action: ``read``, ``write`` or ``admin``.
            resource: ``sessions``, ``runs``, ``tasks`` and so on.
            ids: The names that the one thing goes by; none of them means the kind as a whole.
        """
        if self.is_secret:
            return True
        wanted = {"admin", f"{action}:all", f"{action}:{resource}"}
        wanted.update(f"{action}:{resource}:{one}" for one in ids)

        return not wanted.isdisjoint(self.scopes)

    def require(self, action: str, resource: str, ids: Iterable[str] = ()) -> None:
        """Refuse with 403 whoever may not."""
        if not self.may(action, resource, ids):
            raise RefusalError(answers.SCOPE_MISSING)

    def refuse_one_time(self) -> None:
        """Refuse with 403 a token that is good for one run where nothing would spend it."""
        if self.is_one_time:
            raise RefusalError(answers.SCOPE_MISSING)

    def require_secret(self) -> None:
        """Refuse with 403 whoever has no secret key."""
        if not self.is_secret:
            raise RefusalError(answers.SECRET_NEEDED)


SECRET: Final = Caller(is_secret=True)


class Access:
    """Knows the secret key, and what was signed with it."""

    def __init__(self, secret_key: str) -> None:
        self._secret_key = secret_key

    def identify(self, exchange: Exchange) -> Caller:
        """The caller that the bearer names.

        Raises:
            RefusalError: 401, there is none, or it is wrong or expired.
        """
        if exchange.has_key(self._secret_key):
            return SECRET
        token = exchange.bearer
        if token.count(".") != 2:
            raise RefusalError(answers.UNAUTHORIZED)

        claims = self._verify(token)

        return Caller(
            is_secret=False,
            scopes=_scopes(claims),
            is_one_time=claims.get("otu") is True,
            expires_at=float(claims["exp"]),
        )

    def issue(self, scopes: Iterable[str], *, life_s: float) -> str:
        """Make a public access token.

        Args:
            scopes: What it is good for, as ``read:sessions:chat-1``.
            life_s: Seconds until it expires.
        """
        now = int(time.time())
        claims = {
            "sub": ENVIRONMENT,
            "pub": True,
            "scopes": list(scopes),
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + int(life_s),
        }
        token: str = load_jwt().encode(claims, self._secret_key, algorithm=ALGORITHM)

        return token

    def sign(self, text: str) -> str:
        """Return what only a holder of the secret key can make of a text.

        Args:
            text: Has a blank in it, so that it is nothing that a token is signed over.
        """
        return hmac.new(self._secret_key.encode(), text.encode(), "sha256").hexdigest()

    def _verify(self, token: str) -> dict[str, Any]:
        jwt = load_jwt()
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret_key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": ["exp"]},
            )
        except jwt.ExpiredSignatureError:
            raise RefusalError(answers.TOKEN_EXPIRED) from None
        except jwt.InvalidTokenError:
            raise RefusalError(answers.TOKEN_INVALID) from None
        if claims.get("pub") is not True:
            raise RefusalError(answers.TOKEN_INVALID)

        return claims


@functools.cache
def load_jwt() -> ModuleType:
    """The JWT library; it takes long to import, and most gateways start without a token."""
    import warnings

    import jwt

    # The key is whatever the operator chose; there is nobody here to read a warning about it.
    warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)

    return jwt


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    scopes = claims.get("scopes", [])
    if not isinstance(scopes, list):
        return frozenset()

    return frozenset(scope for scope in scopes if isinstance(scope, str))
