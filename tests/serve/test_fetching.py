"""Fetcher of addresses in requests: public hosts that the settings allow."""

import asyncio

import pytest
from aiohttp import web

from serve.errors import ApiError
from serve.fetching import Fetcher, is_public
from tests.conftest import free_port


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "224.0.0.1",
        "::1",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "::10.0.0.1",
        "::8.8.8.8",
        "::ffff:0:10.0.0.1",
        "64:ff9b:1::a",
        "192.0.0.9",
        "192.88.99.1",
        "fec0::1",
        "2001::1",
        "3fff::1",
    ],
)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("93.184.215.14")
    assert is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert is_public("64:ff9b::5db8:d70e")


def test_only_allowed_hosts_at_public_addresses_are_fetched_from() -> None:
    async def run() -> None:
        paths: list[str] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            paths.append(request.path)
            if request.path == "/moved":
                raise web.HTTPFound("http://127.0.0.1/elsewhere")
            return web.Response(body=b"x" * 5000, content_type="image/png")

        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        url = f"http://localhost:{port}"
        try:
            with pytest.raises(ApiError, match="does not fetch"):
                await Fetcher([], 10_000).read(f"{url}/a", "p")
            for broken in ("http://[", "data:image/png;base64,\u00e4", "nonsense"):
                with pytest.raises(ApiError):
                    await Fetcher([], 10_000).read(broken, "p")
            for host in ("localhost", "127.0.0.1"):
                with pytest.raises(ApiError, match="not on the public internet"):
                    await Fetcher([host], 10_000).read(f"http://{host}:{port}/a", "p")
            assert paths == []
            open_to_tests = Fetcher(["localhost"], 10_000, allowed=lambda address: True)
            assert await open_to_tests.read(f"{url}/a", "p") == (b"x" * 5000, "image/png")
            with pytest.raises(ApiError, match="status 302"):
                await open_to_tests.read(f"{url}/moved", "p")
            with pytest.raises(ApiError, match="larger than 4000"):
                await Fetcher(["localhost"], 4000, allowed=lambda address: True).read(f"{url}/a", "p")
            assert "/elsewhere" not in paths
        finally:
            await runner.cleanup()

    asyncio.run(run())
