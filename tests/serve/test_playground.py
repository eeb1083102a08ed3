"""Web page of the service, in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.conftest import wait_for

from .running import Running, video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT = 90_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, service: Running) -> Iterator[Page]:
    """Page of a user with an API key, which may load nothing from other hosts and raise no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(LIMIT)
    foreign: list[str] = []
    errors: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((service.url, "blob:", "data:")):
            foreign.append(request.url)

    opened.on("request", note)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.add_init_script(f"sessionStorage.setItem('key', '{service.secrets['alice']}')")
    opened.goto(service.url)
    expect(opened.locator("#model")).to_have_text("tiny")
    yield opened
    assert foreign == []
    assert errors == []
    context.close()


def _plays(page: Page, element: str) -> None:
    # the content security policy of the page forbids `wait_for_function`
    shown = f"document.querySelector('{element}')"
    playing = f"{shown}.readyState >= 2 && {shown}.currentTime > 0.1"
    wait_for(lambda: bool(page.evaluate(playing)), "it does not play", LIMIT / 1000)
    assert page.evaluate(f"document.querySelector('{element}').videoWidth") > 0


def test_a_video_is_generated_with_the_keyboard_alone(page: Page, tmp_path: Path) -> None:
    page.locator("body").click(position={"x": 2, "y": 2})
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Control+A")
    page.keyboard.type("a blue star moves up")
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "make-go"
    page.keyboard.press("Enter")
    expect(page.locator("#make-progress")).to_be_visible()
    expect(page.locator("#make-state")).to_have_text("done", timeout=LIMIT)
    _plays(page, "#make-video")
    assert page.evaluate("document.querySelector('#make-sprites').naturalWidth") > 100
    expect(page.locator("#make-about")).to_contain_text("a blue star moves up")
    expect(page.locator("#make-about")).to_contain_text("18 motion tokens")
    page.screenshot(path=tmp_path / "made.png", full_page=True)


def test_a_video_is_reconstructed_and_discussed(page: Page, tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(video())
    page.locator("#source").set_input_files(source)
    page.locator("#through-go").click()
    expect(page.locator("#through-state")).to_have_text("done", timeout=LIMIT)
    _plays(page, "#through-original")
    _plays(page, "#through-video")
    page.locator("#about").set_input_files(source)
    page.locator("#question").fill("What happens?")
    page.locator("#chat-go").click()
    expect(page.locator("#log .user")).to_have_text("What happens?")
    expect(page.locator("#chat-go")).to_be_enabled(timeout=LIMIT)
    assert page.locator("#log .assistant").inner_text() not in ("", "…")
    page.locator("#question").fill("And then?")
    page.locator("#chat-go").click()
    expect(page.locator("#log .assistant")).to_have_count(2)
    expect(page.locator("#chat-state")).to_have_text("")


def test_a_video_can_be_stopped(page: Page) -> None:
    page.locator("#seconds").select_option("8")
    page.locator("#make-go").click()
    page.locator("#make-stop").click()
    expect(page.locator("#make-state")).to_have_text("stopped")
    expect(page.locator("#make-go")).to_be_enabled()


def test_errors_are_shown(page: Page, tmp_path: Path) -> None:
    page.locator("#seconds").select_option("12")  # this service allows 8
    page.locator("#make-go").click()
    expect(page.locator("#make-state")).to_have_text("at most 8 seconds are generated, not 12")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    page.locator("#source").set_input_files(broken)
    page.locator("#through-go").click()
    expect(page.locator("#through-state.error")).to_be_visible()


def test_a_wrong_key_asks_for_another(browser: Browser, service: Running) -> None:
    page = browser.new_page()
    page.goto(service.url)
    expect(page.locator("#model")).to_contain_text("API key")
    expect(page.locator("#key")).to_be_focused()
    page.locator("#key").fill(service.secrets["bob"])
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_have_text("tiny")
    page.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_phones_and_follows_the_scheme(browser: Browser, service: Running, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(service.url)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert brightness > 200 if scheme == "light" else brightness < 60
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input,textarea,select')].filter(one => !one.labels.length).length"
    )
    assert unnamed == 0
    page.close()
