"""Web page of the service, in a real browser."""

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Locator, Page, Request, Route, expect, sync_playwright

from tests.conftest import wait_for

from .conftest import EXAMPLES
from .running import Running, picture, video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT = 90_000
OWNER = "alice"

Open = Callable[..., Page]

expect.set_options(timeout=LIMIT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, service: Running) -> Iterator[Open]:
    """Opens the page of a user with an API key; nothing may be loaded from other hosts, and no error be raised."""
    foreign: list[str] = []
    errors: list[str] = []
    contexts = []

    def note(request: Request) -> None:
        if not request.url.startswith((service.url, "blob:", "data:")):
            foreign.append(request.url)

    def open_one(owner: str | None = OWNER, path: str = "/", width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.set_default_timeout(LIMIT)
        opened.on("request", note)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        if owner:
            opened.add_init_script(f"sessionStorage.setItem('videolavit-key', '{service.secrets[owner]}')")
        opened.goto(service.url + path)
        return opened

    yield open_one
    for context in contexts:
        context.close()
    assert foreign == []
    assert errors == []


@pytest.fixture
def page(open_page: Open) -> Page:
    opened = open_page()
    expect(opened.locator("#model")).to_have_text("tiny")
    return opened


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    file = tmp_path / "clip.mp4"
    file.write_bytes(video())
    return file


def _newest(page: Page) -> Locator:
    return page.locator(".job").first


def _make(page: Page, **values: str) -> None:
    for name, value in values.items():
        field = page.locator(f"#video-{name}")
        field.select_option(value) if name == "seconds" else field.fill(value)
    page.locator("#video-form [type=submit]").click()


def _wait_until_it_plays(page: Page, element: str) -> None:
    # the content security policy of the page forbids `wait_for_function`
    shown = f"document.querySelector('{element}')"
    playing = f"{shown}.readyState >= 2 && {shown}.currentTime > 0.1 && {shown}.videoWidth > 0"
    wait_for(lambda: bool(page.evaluate(playing)), "it does not play", LIMIT / 1000)


def _ask(page: Page, question: str) -> None:
    page.locator("#chat-text").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator("#chat-form [type=submit]")).to_be_visible()


# ---- videos and pictures --------------------------------------------------------------------------------------------


def test_a_video_is_made_with_the_keyboard_alone(page: Page) -> None:
    def tab_to(wanted: str) -> None:
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches('{wanted}')"):
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    tab_to("#tab-video")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#panel-chat")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-chat")).to_be_hidden()
    tab_to(".examples button")
    page.keyboard.press("Enter")
    expect(page.locator("#video-prompt")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type(" slowly")
    tab_to("#video-form [type=submit]")
    page.keyboard.press("Enter")
    prompt = f"{EXAMPLES.video[0]} slowly"
    expect(page.locator("#jobs-state")).to_have_text(f"“{prompt}” is ready.")
    expect(_newest(page).locator("h3")).to_have_text(f"“{prompt}”")
    expect(_newest(page).locator(".facts")).to_contain_text(
        re.compile(r"24\sframes · 4\ss · 6\sframes/s · .+ · seed\s\d+")
    )
    expect(_newest(page).locator(".facts")).to_contain_text("18 motion tokens")
    _wait_until_it_plays(page, ".job .made video")
    _newest(page).locator("summary").click()
    sheet = "document.querySelector('.job .keyframes img').naturalWidth"
    wait_for(lambda: bool(page.evaluate(f"{sheet} > 100")), "there is no contact sheet")
    with page.expect_download() as saved:
        _newest(page).locator(".save").click()
    assert saved.value.suggested_filename.endswith(".mp4")


def test_jobs_survive_a_reload_and_are_stopped(page: Page, service: Running) -> None:
    _make(page, prompt="to be stopped", seconds="7.833", seed="7")
    expect(_newest(page).locator("h3")).to_have_text("“to be stopped”")
    page.reload()
    expect(_newest(page).locator("h3")).to_have_text("“to be stopped”")
    job = service.client(OWNER).videos.list().data[0]
    assert job.prompt == "to be stopped"
    stop = _newest(page).locator(".stop-job")
    if job.status in ("queued", "in_progress"):
        expect(_newest(page).locator("progress")).to_be_visible()
    else:  # made during the reload
        page.once("dialog", lambda dialog: dialog.accept())
        stop = _newest(page).locator(".delete")
    stop.click()
    expect(page.locator("#jobs-state")).to_contain_text("“to be stopped”")
    expect(page.locator("h3", has_text="to be stopped")).to_have_count(0)
    assert job.id not in [other.id for other in service.client(OWNER).videos.list().data]


def test_a_finished_video_is_used_again_and_deleted(page: Page, service: Running) -> None:
    service.client(OWNER).videos.create_and_poll(prompt="a star", seconds="4", extra_body={"seed": 5})
    page.reload()
    _newest(page).locator(".again").click()
    assert [page.locator(f"#video-{name}").input_value() for name in ("prompt", "seconds", "seed")] == [
        "a star",
        "4",
        "5",
    ]
    questions: list[str] = []

    def agree(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.accept()

    page.once("dialog", agree)
    _newest(page).locator(".delete").click()
    expect(page.locator("#jobs-state")).to_have_text("Deleted: “a star”")
    assert questions == ["Delete “a star”?"]
    assert "a star" not in [job.prompt for job in service.client(OWNER).videos.list().data]


def test_a_video_has_its_place_before_it_is_loaded(page: Page, service: Running) -> None:
    job = service.client(OWNER).videos.create_and_poll(prompt="a place", seconds="4")
    held: list[Route] = []
    page.route(f"{service.url}/v1/videos/{job.id}/content*", lambda route: held.append(route))
    page.reload()
    place = _newest(page).locator(".made video")
    expect(place).to_be_visible()
    before = place.bounding_box()
    expect(_newest(page).locator(".save")).to_be_hidden()
    for route in held:
        route.continue_()
    expect(_newest(page).locator(".save")).to_be_visible()
    assert before is not None
    assert before["width"] / before["height"] == pytest.approx(72 / 48, rel=0.05)
    assert place.bounding_box() == before


def test_a_picture_is_made_and_a_video_from_it_alone(page: Page) -> None:
    page.locator("#tab-picture").click()
    page.locator("#panel-picture .examples button").click()
    page.locator("#picture-form [type=submit]").click()
    expect(page.locator("#pictures figcaption")).to_contain_text(EXAMPLES.picture[0])
    page.locator("#pictures .start").click()
    expect(page.locator("#panel-video .chosen img")).to_be_visible()
    _make(page, prompt="")
    expect(_newest(page).locator("h3")).to_have_text("From a picture")
    _wait_until_it_plays(page, ".job .made video")


def test_a_video_is_reconstructed_beside_the_original(page: Page, clip: Path) -> None:
    page.locator("#tab-reconstruct").click()
    page.locator("#reconstruct-video").set_input_files(clip)
    page.locator("#reconstruct-form [type=submit]").click()
    expect(page.locator("#jobs-state")).to_have_text("Reconstruction is ready.")
    for name in ("original", "made"):
        _wait_until_it_plays(page, f".job .{name} video")
    page.reload()  # the page alone had the original
    expect(page.locator("#panel-reconstruct")).to_be_visible()
    expect(_newest(page).locator("h3")).to_have_text("Reconstruction")
    expect(_newest(page).locator(".original")).to_be_hidden()


# ---- chat -----------------------------------------------------------------------------------------------------------


def test_a_conversation_survives_a_file_and_a_reload(page: Page, tmp_path: Path) -> None:
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json))
    page.locator("#tab-chat").click()
    _ask(page, "Hello?")
    (tmp_path / "first.png").write_bytes(picture())
    page.locator("#chat-file").set_input_files(tmp_path / "first.png")
    _ask(page, "What is it?")
    page.reload()
    expect(page.locator("#log .user")).to_have_count(2)
    expect(page.locator("#log .user img")).to_have_count(1)
    page.locator("#tab-video").click()
    page.reload()
    page.locator("#tab-chat").click()
    rest = "document.querySelector('#log').scrollHeight - document.querySelector('#log').clientHeight"
    wait_for(
        lambda: bool(page.evaluate(f"{rest} - document.querySelector('#log').scrollTop < 2")), "the end is not seen"
    )
    assert page.evaluate(rest) > 0
    _ask(page, "Why?")
    expect(page.locator("#log .assistant")).to_have_count(3)
    expect(page.locator("#chat-form .state")).to_have_text("")
    content = [message["content"] for message in sent[-1]["messages"] if message["role"] == "user"]
    assert (content[0], content[2]) == ("Hello?", "Why?")
    assert content[1][0]["file"]["filename"] == "first.png"
    assert content[1][1]["text"] == "What is it?"
    page.locator("#chat-new").click()
    page.reload()
    expect(page.locator("#log .turn")).to_have_count(0)


def test_a_file_too_large_for_the_reload_is_named(page: Page) -> None:
    page.locator("#tab-chat").click()
    page.evaluate("sessionStorage.setItem('filling', 'x'.repeat(5_200_000))")
    page.locator("#chat-file").set_input_files(
        {"name": "large.png", "mimeType": "image/png", "buffer": picture(0, 180, 180)}
    )
    _ask(page, "What is it?")
    expect(page.locator("#chat-form .state")).to_have_text("Too large to be kept over a reload of the page: large.png.")
    page.evaluate("sessionStorage.removeItem('filling')")
    page.reload()
    expect(page.locator("#log .user")).to_contain_text("large.png was not kept")


def test_an_answer_can_be_stopped(page: Page) -> None:
    page.locator("#tab-chat").click()
    page.evaluate("""() => new MutationObserver((_, watching) => {
        const text = document.querySelector("#log .assistant .text")?.textContent ?? "…";
        if (text === "…") return;
        watching.disconnect();
        document.querySelector("#chat-form .stop").click();
    }).observe(document.querySelector("#log"), { childList: true, characterData: true, subtree: true })""")
    _ask(page, "Tell me everything")
    expect(page.locator("#chat-form .state")).to_have_text("Stopped.")
    expect(page.locator("#log .assistant .hint")).to_have_text("Stopped")
    assert 0 < len(page.locator("#log .assistant .text").inner_text()) < 200
    _ask(page, "Go on")
    expect(page.locator("#log .assistant")).to_have_count(2)


def test_a_made_video_is_asked_about(page: Page, service: Running) -> None:
    service.client(OWNER).videos.create_and_poll(prompt="a question", seconds="4")
    page.reload()
    _newest(page).locator(".ask").click()
    expect(page.locator("#panel-chat .chosen video")).to_be_visible()
    page.locator("#panel-chat .examples button").click()
    assert page.locator("#chat-text").input_value() == EXAMPLES.question[0]
    page.keyboard.press("Enter")
    expect(page.locator("#log .user video")).to_be_visible()
    expect(page.locator("#chat-form [type=submit]")).to_be_visible()
    assert page.locator("#log .assistant .text").inner_text() not in ("", "…")


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_is_sent(page: Page) -> None:
    for name, words, field in (
        ("video", "Describe the video, or choose a picture that it starts with.", "video-prompt"),
        ("reconstruct", "Choose a video first.", "reconstruct-video"),
        ("picture", "Describe the picture first.", "picture-prompt"),
        ("chat", "Write a question first.", "chat-text"),
    ):
        page.locator(f"#tab-{name}").click()
        page.locator(f"#{name}-form [type=submit]").click()
        expect(page.locator(f"#{name}-form .state.error")).to_have_text(words)
        expect(page.locator(f"#{field}")).to_be_focused()


def test_files_that_are_refused(page: Page) -> None:
    page.locator("#tab-reconstruct").click()
    for size, place, words in (
        (100, ".job .state.error", "Not a readable video file"),
        (3 << 20, "#reconstruct-form .state.error", "Choose a smaller or a shorter file."),
    ):
        file = {"name": "no.mp4", "mimeType": "video/mp4", "buffer": bytes(size)}
        page.locator("#reconstruct-video").set_input_files(file)  # type: ignore[arg-type]
        page.locator("#reconstruct-form [type=submit]").click()
        expect(page.locator(place).first).to_contain_text(words)


def test_too_many_jobs_are_refused_with_the_time_to_wait(open_page: Open, service: Running) -> None:
    client = service.client("dave")
    jobs = [client.videos.create(prompt="open", seconds="8", size="240x160") for _ in range(6)]  # type: ignore[arg-type]
    try:
        page = open_page("dave")
        _make(page, prompt="one more")
        state = page.locator("#video-form .state.error")
        expect(state).to_have_text("Too many video jobs are open; try again when one has ended. Wait 10 seconds first.")
        expect(page.locator(".job")).to_have_count(6)
        expect(_newest(page).locator(".progress")).to_be_visible()
    finally:
        for job in jobs:
            client.videos.delete(job.id)


def test_a_service_that_is_gone_and_comes_back(page: Page) -> None:
    page.locator("#tab-chat").click()
    page.context.set_offline(True)
    _ask(page, "Are you there?")
    expect(page.locator("#chat-form .state.error")).to_contain_text("The service cannot be reached.")
    assert page.locator("#chat-text").input_value() == "Are you there?"
    expect(page.locator("#log .turn")).to_have_count(0)
    page.context.set_offline(False)
    page.keyboard.press("Enter")
    expect(page.locator("#log .assistant")).to_have_count(1)


def test_a_page_that_is_opened_during_the_start_learns_about_the_model_later(page: Page, service: Running) -> None:
    starting = {"error": {"message": "the service is starting or stopping; try again", "code": "unavailable"}}
    page.route(f"{service.url}/v1/**", lambda route: route.fulfill(status=503, json=starting))
    page.reload()
    expect(page.locator("#jobs-state.error")).to_have_text("The service is starting or stopping; try again.")
    expect(page.locator("#model")).to_have_text("not known")
    page.unroute(f"{service.url}/v1/**")
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#video-seconds option").first).to_have_text("4 seconds")
    expect(page.locator("#jobs-state")).to_have_text("")


def test_a_lost_answer_makes_no_second_video(page: Page, service: Running) -> None:
    requests = 0

    def lose_first_answer(route: Route) -> None:
        nonlocal requests
        requests += 1
        if requests == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.route(f"{service.url}/v1/videos", lose_first_answer)  # the list has a query
    _make(page, prompt="sent twice")
    expect(page.locator("#jobs-state")).to_have_text("“sent twice” is ready.")
    assert requests == 2
    assert [job.prompt for job in service.client(OWNER).videos.list().data].count("sent twice") == 1


def test_a_wrong_key_asks_for_another(open_page: Open, service: Running) -> None:
    page = open_page(owner=None)
    expect(page.locator("#jobs-state.error")).to_have_text("This service needs an API key. Enter it above.")
    expect(page.locator("#key")).to_be_focused()
    for secret, words in (("wrong", "The service does not accept this API key. Enter another one above."), ("", "")):
        page.locator("#key").fill(secret or service.secrets["bob"])
        page.keyboard.press("Enter")
        expect(page.locator("#jobs-state")).to_have_text(words)
    expect(page.locator("#model")).to_have_text("tiny")
    assert service.secrets["bob"] not in page.url


# ---- looks ----------------------------------------------------------------------------------------------------------


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours of a style sheet, as WCAG defines it."""

    def luminance(colour: str) -> float:
        shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted(luminance(colour) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_phones_and_follows_the_scheme(open_page: Open, service: Running, scheme: str) -> None:
    word = "a_very_long_word_without_a_place_to_break" * 2
    service.client(OWNER).videos.create_and_poll(prompt=word, seconds="4")
    page = open_page(color_scheme=scheme)
    expect(page.locator(".job .made").first).to_be_visible()
    for width, tab in itertools.product((320, 375, 1280), ("video", "reconstruct", "picture", "chat")):
        page.set_viewport_size({"width": width, "height": 800})
        page.locator(f"#tab-{tab}").click()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    colour, background = (
        f"getComputedStyle(document.querySelector(place)).{name}" for name in ("color", "backgroundColor")
    )
    card = page.evaluate(f"place => {background}", "section")
    brightness = int(re.findall(r"\d+", card)[0])
    assert brightness > 200 if scheme == "light" else brightness < 60
    for place, behind in (
        ("h2", "section"),
        (".hint", "section"),
        (".facts", "section"),
        (".examples button", "section"),
        ("header p", "body"),
        ("[type=submit]", "[type=submit]"),
        ("[aria-selected=true]", "[aria-selected=true]"),
    ):
        shown = page.evaluate(f"place => {colour}", place)
        assert _contrast(shown, page.evaluate(f"place => {background}", behind)) >= 4.5, place
    page.locator("#tab-picture").click()
    page.locator("#picture-form [type=submit]").click()
    error = "#picture-form .state.error"
    assert _contrast(*(page.evaluate(f"place => {one}", error) for one in (colour, background))) >= 4.5
    named = "[...document.querySelectorAll('input,textarea,select')].every(one => one.labels.length)"
    assert page.evaluate(named)


def test_the_documentation_lists_the_operations(open_page: Open) -> None:
    page = open_page(path="/docs")
    expect(page.locator(".opblock")).not_to_have_count(0)
    assert page.locator(".opblock").count() >= 12
    page.locator(".opblock", has_text="/v1/chat/completions").locator("button").first.click()
    expect(page.locator(".opblock.is-open")).to_contain_text("Request body")
