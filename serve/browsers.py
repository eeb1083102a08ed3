"""Requests that web pages make: a page of another site gets nothing, by whatever name it reaches the service."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from .errors import ApiError
from .settings import is_loopback

OWN_SITES = ("same-origin", "none")
"""Values of `Sec-Fetch-Site`, which pages cannot set, for the service's own page, and for what a person typed."""


def check_browser(headers: Headers, has_keys: bool, origins: Collection[str]) -> None:
    """Raises ApiError for what a page of another site asks.

    Args:
        headers: Headers of the request.
        has_keys: False for a service that anybody on this machine may use. It answers to no name but `localhost`:
            another one could be that of a site which has changed its address to this machine.
        origins: Origins whose pages may call the service; `*` for all.
    """
    if not has_keys and not is_loopback(_host_name(headers.get("host", ""))):
        raise _refused("without API keys the service answers to localhost, 127.0.0.1 and [::1] only", "unknown_host")
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and ("*" in origins or origin in origins):
        return
    if site is not None:
        is_own = site in OWN_SITES
    else:  # an old browser, or a page without encryption
        own = headers.get("x-forwarded-host") or headers.get("host")
        is_own = origin is None or urlsplit(origin).netloc == own
    if not is_own:
        raise _refused("pages of this origin may not use the service; `cors_origins` lists those that may", "origin")


def _host_name(host: str) -> str:
    """Name or address in a `Host` header; empty for one that is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refused(message: str, code: str) -> ApiError:
    return ApiError(403, message, code, kind="permission_error")
