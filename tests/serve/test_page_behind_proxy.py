"""Web page of the service behind a proxy that offers it under a path, in a real browser."""

import contextlib
import threading
from asyncio import new_event_loop
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from playwright.sync_api import expect, sync_playwright

from tests.conftest import free_port, wait_for

from .test_middleware import running
from .test_page import CHROMIUM

PREFIX = "/video"
HOP = {"connection", "content-length", "host", "transfer-encoding"}


@contextlib.contextmanager
def reverse_proxy(target: str) -> Iterator[str]:
    """Proxy that answers paths below `PREFIX`, which it removes, and nothing else; yields its address."""
    port, loop, ended = free_port(), new_event_loop(), threading.Event()

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = target + request.path_qs.removeprefix(PREFIX)
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=await request.read()) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_route("*", PREFIX + "/{rest:.*}", forward)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        ended.set()

    ready = threading.Event()
    threading.Thread(target=serve, daemon=True).start()
    wait_for(ready.is_set, "the proxy is not up")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        ended.wait(30)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_the_page_works_behind_a_proxy_that_offers_it_under_a_path(tmp_path: Path) -> None:
    with running(tmp_path) as stack, reverse_proxy(stack.behind) as proxy, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(f"sessionStorage.setItem('videolavit-key', '{stack.secret}')")
        page.goto(f"{proxy}{PREFIX}/")
        expect(page.locator("#model")).to_have_text("tiny")
        page.locator("#video-prompt").fill("a red ball rolls away")
        page.locator("#video-form [type=submit]").click()
        expect(page.locator(".job").first).to_contain_text("a red ball rolls away")
        page.get_by_role("link", name="API reference").click()
        expect(page.locator(".opblock")).not_to_have_count(0)
        browser.close()
    assert [url for url in asked if not url.startswith((f"{proxy}{PREFIX}/", "blob:", "data:"))] == []
    assert errors == []
    assert f"{proxy}{PREFIX}/v1/videos" in asked
