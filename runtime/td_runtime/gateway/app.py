"""The gateway's one application: who answers which path."""

from __future__ import annotations

from starlette.routing import Mount, Router

from td_runtime.gateway.admin import Admin
from td_runtime.gateway.guard import Guard
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.platform import Platform
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.settings import Settings


def build_app(platform: Platform, settings: Settings, journal: Journal) -> Guard:
    """Everything below the guard: the platform first, since its paths are the hot ones."""
    key = settings.secret_key
    admin = Admin(platform, secret_key=key, allow_faults=settings.allow_faults, journal=journal)
    access = Access(key)
    endpoint = f"http://{settings.advertised}/v1"
    # A bare router: the guard is the one place that answers for errors, and knows what to say.
    application = Router(
        redirect_slashes=False,
        routes=[
            Mount("/v1", app=platform.stream_store(secret_key=key)),
            Mount("/realtime/v1/streams", app=platform.control_plane(access, endpoint=endpoint)),
            Mount(
                "/realtime/v1/sessions",
                app=platform.channels(access, endpoint=endpoint, journal=journal),
            ),
            Mount("/api", app=platform.api(access)),
            *admin.routes(),
        ],
    )

    return Guard(application, settings=settings, journal=journal, origins=settings.allow_origins)
