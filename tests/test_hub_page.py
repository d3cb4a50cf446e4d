"""The status page at /hub/, clicked through in a real browser at a real server."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, Request, Route, expect

from tests.browser_driver import Watched, chromium, watched
from tests.media_support import encoded
from tests.server import ServerProcess
from tests.test_demo_vision_model import shape
from tests.waiting import until_sync

NEVER_ENDS = {"0": -100, "1": -100, "2": -100}  # the special tokens, which could end an answer
HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script>"
KEY = "sk-of-this-test"


@pytest.fixture(scope="module")
def server(demo_server: ServerProcess) -> Iterator[ServerProcess]:
    """The demo models, and a folder that is no model."""
    broken = demo_server.folder / "org" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"model_type": "llama"}')
    unload(demo_server, "demo-vision")
    yield demo_server
    shutil.rmtree(broken.parent)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def open_page(server: ServerProcess, browser: Browser) -> Callable[..., Any]:
    @contextmanager
    def open_one(path: str = "/hub/") -> Iterator[Watched]:
        with watched(browser, server.base, path) as hub:
            yield hub

    return open_one


@pytest.fixture(scope="module")
def shared(open_page: Callable[..., Any]) -> Iterator[Watched]:
    with open_page() as hub:
        yield hub


@pytest.fixture
def hub(shared: Watched) -> Watched:
    """The page that most tests share, with an empty chat and no filters."""
    page = shared.page
    page.unroute_all()
    page.locator("#chat-new").click()
    page.locator("#message").fill("")
    page.locator("#chat-model").select_option("demo")
    page.locator("#log-filter").fill("")
    return shared


def model(page: Page, name: str) -> Locator:
    return page.locator(f'[data-model="{name}"]')


def told(server: ServerProcess) -> dict[str, Any]:
    """What the server says of itself."""
    status: dict[str, Any] = httpx.get(f"{server.base}/hub/status").json()
    return status


def told_of(server: ServerProcess, name: str) -> dict[str, Any]:
    return next(one for one in told(server)["models"] if one["id"] == name)


def unload(server: ServerProcess, name: str) -> None:
    asked = httpx.post(f"{server.base}/admin/models/unload", json={"model": name})
    assert asked.status_code == 200, asked.text


def sent(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.post_data or "")
    return body


def never_ending(page: Page) -> None:
    """From now on, answers of this page's chat go on until they are stopped."""

    def change(route: Route) -> None:
        body = {**sent(route.request), "logit_bias": NEVER_ENDS}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", change)


def ask(page: Page, text: str) -> None:
    page.locator("#message").fill(text)
    page.locator("#send").click()


def answers(page: Page) -> Locator:
    return page.locator(".turn.assistant .turn-text")


# --- models ---------------------------------------------------------------------------------


def test_models_are_listed_with_their_state(hub: Watched, server: ServerProcess) -> None:
    page = hub.page
    expect(page.locator("#version")).to_have_text(told(server)["version"])
    expect(page.locator("#health-word")).to_have_text("Healthy")
    expect(page.locator("#models-count")).to_contain_text("of 3 loaded")
    row = model(page, "demo-vision")
    expect(row.locator(".state")).to_have_text("Not loaded")
    expect(row).to_contain_text("needs")
    expect(row).to_contain_text("f16")
    expect(row.locator('[data-label="Context"]')).to_have_text("4K")
    broken = model(page, "org/broken")
    expect(broken.locator(".state")).to_have_text("Unusable")
    expect(broken.locator(".why")).to_have_text(told_of(server, "org/broken")["problem"])
    expect(broken.locator("button").first).to_be_hidden()


def test_load_pin_and_unload_change_the_page_and_the_server(
    hub: Watched, server: ServerProcess
) -> None:
    page = hub.page
    row = model(page, "demo-vision")
    row.get_by_role("button", name="Load demo-vision").click()
    expect(row.locator(".state")).to_have_text("Loaded")
    assert told_of(server, "demo-vision")["state"] == "ready"
    pin = row.get_by_role("button", name="Pin demo-vision")
    pin.click()
    expect(row.get_by_role("button", name="Pinned demo-vision")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert told_of(server, "demo-vision")["pinned"] is True
    row.get_by_role("button", name="Pinned demo-vision").click()
    expect(pin).to_have_attribute("aria-pressed", "false")
    assert told_of(server, "demo-vision")["pinned"] is False
    row.get_by_role("button", name="Unload demo-vision").click()
    expect(row.locator(".state")).to_have_text("Not loaded")
    assert told_of(server, "demo-vision")["state"] == "unloaded"


def test_an_error_is_shown_until_its_model_is_in_another_state(
    hub: Watched, server: ServerProcess
) -> None:
    page = hub.page
    row = model(page, "demo-vision")
    refusal = json.dumps({"error": {"message": "No room."}})
    page.route("**/admin/models/load", lambda route: route.fulfill(status=503, body=refusal))
    row.get_by_role("button", name="Load demo-vision").click()
    expect(row.locator(".why.bad")).to_have_text("No room.")
    hub.excused.append("503 (Service Unavailable)")
    asked = httpx.post(f"{server.base}/admin/models/load", json={"model": "demo-vision"})
    assert asked.status_code == 200, asked.text
    expect(row.locator(".state")).to_have_text("Loaded")
    expect(row.locator(".why")).to_be_hidden()
    unload(server, "demo-vision")
    expect(row.locator(".state")).to_have_text("Not loaded")


def test_many_models_can_be_filtered_and_reasons_are_the_servers(
    open_page: Callable[..., Any], server: ServerProcess
) -> None:
    """Of a snapshot as the server gives it, with more models and less memory."""
    status = told(server)
    demo = next(one for one in status["models"] if one["id"] == "demo")
    needs = {**demo["memory_requirements"], "can_load_now": False, "load_status_reason": "No room."}
    more = [
        {**demo, "id": f"org/other-{number}", "state": "unloaded", "memory_requirements": needs}
        for number in range(20)
    ]
    known = {**status, "models": [*status["models"], *more]}
    del status["models"]  # which are told again only when they change
    with open_page(path="") as hub, showing(hub, known, status):
        page = hub.page
        expect(page.locator("#models-count")).to_contain_text("of 23 loaded")
        page.get_by_label("Filter models").fill("OTHER-1")
        expect(page.locator("#models-rows > *")).to_have_count(11)
        row = model(page, "org/other-11")
        expect(row.locator(".why")).to_have_text("No room.")
        expect(row.locator("[data-action]")).to_have_attribute("aria-disabled", "true")
        row.locator("[data-action]").click(force=True)  # which asks the server for nothing
        page.get_by_label("Filter models").fill("nothing like it")
        expect(page.locator("#models-empty")).to_contain_text("No model matches")
        assert not any("/admin/" in url for url in hub.requests)


@contextmanager
def showing(hub: Watched, *told: dict[str, Any]) -> Iterator[None]:
    """The page, opened now, is told this in place of what the server tells."""
    body = "".join(f"event: status\ndata: {json.dumps(status)}\n\n" for status in told)
    hub.page.route("**/hub/events", lambda route: route.fulfill(body=body))
    hub.page.goto(f"{hub.origin}/hub/")
    yield
    hub.page.unroute_all()


def test_a_server_that_ends_says_so(open_page: Callable[..., Any], server: ServerProcess) -> None:
    with open_page(path="") as hub, showing(hub, {**told(server), "stopping": True}):
        expect(hub.page.locator("#stopping")).to_contain_text("The server is stopping")


def test_without_control_nothing_is_offered_that_is_refused(
    open_page: Callable[..., Any], server: ServerProcess
) -> None:
    with open_page(path="") as hub, showing(hub, {**told(server), "control": False}):
        page = hub.page
        expect(page.locator("#read-only")).to_contain_text("server.api_keys")
        expect(page.locator("#log")).to_be_hidden()
        expect(page.get_by_role("button", name="Load demo-vision")).to_be_hidden()
        expect(page.get_by_role("button", name="Send")).to_be_visible()


# --- playground -----------------------------------------------------------------------------


def test_a_chat_streams_an_answer(hub: Watched) -> None:
    page = hub.page
    ask(page, "What is MLX Router?")
    answer = answers(page)
    expect(page.locator(".turn-note")).to_have_text(re.compile(r"\d+ tokens · [\d.]+ tokens/s"))
    assert "MLX Router" in answer.inner_text()
    pieces = answer.evaluate("node => [...node.childNodes].map((piece) => piece.data)")
    assert len(pieces) > 2  # each was put there when it came
    ask(page, "How do I add a model?")
    expect(page.locator(".turn-note").nth(1)).to_contain_text("tokens/s")
    assert page.locator(".turn").count() == 4


def test_a_chat_sends_its_settings_and_its_history(hub: Watched) -> None:
    page = hub.page
    page.locator(".settings summary").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Max. tokens").fill("5")
    ask(page, "Hello!")
    expect(page.locator(".turn-note")).to_contain_text("The token limit is reached · 5 tokens")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Again!")
    body = sent(asked.value)
    assert [message["role"] for message in body["messages"]] == [
        *("system", "user", "assistant", "user")
    ]
    assert (body["temperature"], body["max_tokens"]) == (0, 5)
    expect(page.locator(".turn-note").nth(1)).to_contain_text("5 tokens")
    page.get_by_label("Temperature").fill("3")
    ask(page, "And now?")
    expect(page.locator(".turn-error")).to_contain_text("temperature")
    expect(page.locator("#message")).to_have_value("And now?")
    hub.excused.append("400 (Bad Request)")
    for label in ("System prompt", "Temperature", "Max. tokens"):
        page.get_by_label(label).fill("")
    page.locator(".settings summary").click()


def test_images_go_to_a_model_that_sees(hub: Watched) -> None:
    """One from the file picker, one pasted, one dropped."""
    page = hub.page
    expect(page.locator("#attach")).to_be_disabled()
    page.locator("#chat-model").select_option("demo-vision")
    expect(page.locator("#attach")).to_be_enabled()
    blue = encoded(shape("circle", "blue"))
    with page.expect_file_chooser() as chooser:
        page.locator("#attach").click()
    chooser.value.set_files(FilePayload(name="blue.png", mimeType="image/png", buffer=blue))
    expect(page.locator("#attachments li")).to_have_count(1)
    expect(page.locator("#attachments li")).to_contain_text("blue.png")
    for event in ("paste", "drop"):
        hand_over(page, event, encoded(shape("square", "red")))
    expect(page.locator("#attachments li")).to_have_count(3)
    for _ in range(2):
        page.locator("#attachments button").last.click()
    page.locator("#temperature").evaluate("field => { field.value = '0'; }")
    ask(page, "What is in this picture?")
    expect(answers(page)).to_have_text("A blue circle.")
    expect(page.locator(".turn.user img")).to_have_attribute("alt", "blue.png")
    page.locator("#temperature").evaluate("field => { field.value = ''; }")


def test_an_image_for_a_model_that_reads_only_is_refused(hub: Watched) -> None:
    hand_over(hub.page, "paste", encoded(shape("square", "red")))
    expect(hub.page.locator(".turn-error")).to_contain_text("reads text only")
    expect(hub.page.locator("#attachments")).to_be_hidden()


def hand_over(page: Page, event: str, png: bytes) -> None:
    page.evaluate(
        """([event, bytes]) => {
            const data = new DataTransfer();
            const file = new File([new Uint8Array(bytes)], `${event}.png`, {type: "image/png"});
            data.items.add(file);
            const options = {bubbles: true, cancelable: true};
            const made = event === "paste"
                ? new ClipboardEvent(event, {...options, clipboardData: data})
                : new DragEvent(event, {...options, dataTransfer: data});
            document.getElementById("message").dispatchEvent(made);
        }""",
        [event, list(png)],
    )


def test_reasoning_is_shown_apart(hub: Watched) -> None:
    """The demo model thinks when it is asked to by a field that the page does not send."""
    page = hub.page

    def think(route: Route) -> None:
        body = {**sent(route.request), "chat_template_kwargs": {"enable_thinking": True}}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", think)
    ask(page, "What is MLX Router?")
    expect(page.locator(".turn-note")).to_contain_text("tokens/s")
    thoughts = page.locator(".thoughts-text").inner_text()
    assert thoughts
    assert thoughts not in answers(page).inner_text()


def test_stop_ends_the_answer(hub: Watched, server: ServerProcess) -> None:
    page = hub.page
    never_ending(page)
    ask(page, "Tell me a story.")
    until_sync(lambda: answers(page).inner_text() != "")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".turn-note")).to_contain_text("Stopped")
    until_sync(lambda: told(server)["requests"] == [])
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_question_without_an_answer_is_no_part_of_the_chat(hub: Watched) -> None:
    page = hub.page
    page.route("**/v1/chat/completions", lambda route: None)  # no answer comes
    ask(page, "Hello!")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".turn-note")).to_have_text("Stopped")
    expect(page.locator("#message")).to_have_value("Hello!")
    page.unroute_all()
    with page.expect_request("**/v1/chat/completions") as asked:
        page.locator("#send").click()
    assert sent(asked.value)["messages"] == [{"role": "user", "content": "Hello!"}]
    expect(page.locator(".turn-note").last).to_contain_text("tokens/s")


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(hub: Watched) -> None:
    body = 'data: {"choices": [{"delta": {"content": "Half"}, "finish_reason": null}]}\n\n'
    hub.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    ask(hub.page, "Hello!")
    expect(answers(hub.page)).to_have_text("Half")
    expect(hub.page.locator(".turn-error")).to_contain_text("before the answer was complete")


# --- requests, memory, log --------------------------------------------------------------------


def test_live_requests_show_a_running_answer(hub: Watched, server: ServerProcess) -> None:
    page = hub.page
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "logit_bias": NEVER_ENDS,
        "stream": True,
    }
    row = page.locator("#requests-rows > *")
    with httpx.stream(
        "POST", f"{server.url}/chat/completions", json=body, headers={"x-request-id": "mine-1"}
    ):
        expect(row).to_have_count(1)
        expect(row).to_contain_text("mine-1")
        expect(row.locator(".state")).to_have_text("Decoding")
        tokens = row.locator('[data-label="Answer"]')
        before = tokens.inner_text()
        assert re.match(r"[\d,]+ of [\d,]+", before)
        until_sync(lambda: tokens.inner_text() != before)
        expect(row.locator('[data-label="Tokens/s"]')).to_have_text(re.compile(r"[\d.]+"))
        expect(page.locator("#requests-count")).to_have_text("1 running, 0 waiting")
        expect(page.locator("#active")).to_have_text("1")
        assert float(page.locator("#speed").inner_text()) > 0
    expect(page.locator("#requests-empty")).to_be_visible()


def test_the_memory_chart_has_points_bands_and_words(hub: Watched, server: ServerProcess) -> None:
    page = hub.page
    for line in ("available", "router"):
        drawn = page.locator(f"#chart path.{line}").get_attribute("d")
        assert drawn is not None
        assert re.fullmatch(r"(?:[ML][\d.]+ [\d.]+)+", drawn)
    tops = [
        float(page.locator(f"#chart .band-{level}").get_attribute("y") or "0")
        for level in ("moderate", "high", "critical")
    ]
    assert tops == sorted(tops)
    limits = told(server)["memory_limits"]
    expect(page.locator("#chart-text")).to_contain_text(
        f"moderate below {limits['moderate_below_gb']:.1f} GB"
    )
    expect(page.locator("#chart text").first).to_have_text(re.compile(r"^\d"))
    page.locator(".chart-table summary").click()
    expect(page.locator("#chart-rows tr").first).to_contain_text(told(server)["memory_pressure"])
    page.locator(".chart-table summary").click()
    box = page.locator("#chart").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 60)
    expect(page.locator("#chart .reading")).to_contain_text("available")


def test_log_lines_arrive_and_can_be_filtered_and_held(hub: Watched, server: ServerProcess) -> None:
    page = hub.page
    lines = page.locator(".log-line:not([hidden])")
    httpx.get(f"{server.base}/no-such-page-1")
    line = lines.filter(has_text="GET /no-such-page-1 404")
    expect(line.locator(".log-level")).to_have_text("INFO")
    page.get_by_label("Filter log lines").fill("such-page")
    expect(lines).to_have_count(1)
    expect(page.locator("#log-count")).to_contain_text("1 line of")
    page.get_by_role("button", name="Pause").click()
    httpx.get(f"{server.base}/no-such-page-2")
    expect(page.locator("#log-count")).to_contain_text("1 new")
    expect(lines).to_have_count(1)
    page.get_by_role("button", name="Resume").click()
    expect(lines).to_have_count(2)
    page.get_by_label("Least level shown").select_option("Errors")
    expect(lines).to_have_count(0)
    page.get_by_label("Least level shown").select_option("All levels")


def test_a_log_that_is_held_is_not_doubled_by_another_connection(
    open_page: Callable[..., Any], server: ServerProcess
) -> None:
    with open_page(path="") as hub, showing(hub, told(server)):
        expect(model(hub.page, "demo")).to_be_visible()
        hub.page.evaluate(
            """async () => {
                const log = await import("/hub/assets/log.js");
                const lines = [1, 2, 3, 4, 5].map((number) =>
                    ({ number, time: number, level: "INFO", text: `line ${number}` }));
                const hold = document.getElementById("log-pause");
                log.beginLog();
                log.addLines(lines.slice(0, 3));
                hold.click();
                log.addLines(lines.slice(3));
                log.beginLog();
                log.addLines(lines);
                hold.click();
            }"""
        )
        expect(hub.page.locator(".log-text")).to_have_text([f"line {n}" for n in range(1, 6)])


def test_the_log_follows_its_end_until_one_scrolls_up(hub: Watched, server: ServerProcess) -> None:
    page = hub.page
    place = page.locator("#log-lines")
    with httpx.Client(base_url=server.base) as client:
        for number in range(30):
            client.get(f"/filler-{number}")
        expect(place).to_contain_text("/filler-29 ")
        assert place.evaluate(AT_END)
        place.evaluate("place => { place.scrollTop = 0; }")
        expect(page.locator("#log-end")).to_be_visible()
        client.get("/filler-30")
        expect(place).to_contain_text("/filler-30 ")
    assert place.evaluate("place => place.scrollTop") == 0
    page.get_by_role("button", name="Newest lines").click()
    assert place.evaluate(AT_END)


AT_END = "place => place.scrollHeight - place.scrollTop - place.clientHeight < 2"


# --- safety ---------------------------------------------------------------------------------


def test_text_is_never_taken_for_html(hub: Watched, server: ServerProcess) -> None:
    """Of a user, of a model (no model can be made to say it, so this answer is made up), of an
    error and of the log."""
    page = hub.page
    ask(page, HOSTILE)
    expect(page.locator(".turn.user .turn-text")).to_have_text(HOSTILE)
    expect(page.locator(".turn-note")).to_contain_text("tokens/s")
    deltas = [{"reasoning_content": HOSTILE}, {"content": HOSTILE}]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    error = {"error": {"message": HOSTILE}}
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, error])
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    ask(page, "Say it.")
    expect(answers(page).last).to_have_text(HOSTILE)
    expect(page.locator(".thoughts-text").last).to_have_text(HOSTILE)
    expect(page.locator(".turn-error")).to_have_text(HOSTILE)
    httpx.get(f"{server.base}/{HOSTILE}")
    expect(page.locator(".log-line", has_text="<img src=x onerror")).to_have_count(1)
    assert page.locator("img[src=x], main script").count() == 0


def test_nothing_leaves_the_server_and_the_console_is_quiet(
    open_page: Callable[..., Any], server: ServerProcess
) -> None:
    """Every test looks for it at its end; here what was asked for is looked at, too."""
    with open_page() as hub:
        expect(model(hub.page, "demo")).to_be_visible()
        assert f"{server.base}/hub/assets/main.js" in hub.requests
        assert all(url.startswith(server.base) for url in hub.requests)
        with hub.page.expect_console_message() as said:
            hub.page.evaluate(
                "document.body.append(Object.assign(new Image(), {src: 'http://192.0.2.1/'}))"
            )
        assert "Content Security Policy" in said.value.text  # what a request elsewhere would give
        hub.excused += ["Content Security Policy", "http://192.0.2.1/"]


def test_with_api_keys_the_page_asks_for_one_and_works(hub: Watched, server: ServerProcess) -> None:
    """From now on, on a page that is open."""
    page = hub.page
    hub.excused.append("401 (Unauthorized)")
    with needing_a_key(server):
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        expect(dialog).to_contain_text("This server answers to those who have an API key")
        page.keyboard.press("Escape")
        expect(page.locator("#health-word")).to_have_text("Locked")
        page.get_by_role("button", name="Enter a key").click()
        refusals = {
            "sk-\u2026": "letters, digits and signs of ASCII",
            "sk-wrong": "Incorrect API key",
        }
        for given, answer in (*refusals.items(), (f" {KEY} ", None)):
            page.get_by_label("Key", exact=True).fill(given)
            page.get_by_role("button", name="Use key").click()
            if answer:
                expect(dialog).to_contain_text(answer)
        expect(model(page, "demo")).to_be_visible()
        expect(dialog).to_be_hidden()
        page.reload()
        expect(page.locator(".log-line").first).to_be_visible()
        page.get_by_label("Model to chat with").select_option("demo")
        ask(page, "What is MLX Router?")
        expect(page.locator(".turn-note")).to_contain_text("tokens/s")
        page.get_by_role("button", name="Forget key").click()
        expect(dialog).to_be_visible()
        page.evaluate("sessionStorage.setItem('mlx-router-key', 'sk-\u2026')")
        page.reload()
        expect(dialog).to_contain_text("letters, digits and signs of ASCII")
    page.reload()
    expect(page.locator("#health-word")).to_have_text("Healthy")


@contextmanager
def needing_a_key(server: ServerProcess) -> Iterator[None]:
    file = server.folder / "config.json"
    before = file.read_text()
    config = json.loads(before)
    config["server"]["api_keys"] = {"test": KEY}

    def read_again(content: str, status: int) -> None:
        file.write_text(content)
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        until_sync(lambda: httpx.get(f"{server.base}/hub/status").status_code == status)

    read_again(json.dumps(config), 401)
    try:
        yield
    finally:
        read_again(before, 200)


def test_a_lost_connection_is_said_and_mended(
    open_page: Callable[..., Any], server: ServerProcess
) -> None:
    with open_page(path="") as hub:
        page = hub.page
        with showing(hub, told(server)):  # a stream that ends where another would go on
            expect(page.locator("#lost-text")).to_contain_text("Connection lost. Trying again")
            expect(page.locator("#health-word")).to_have_text("Offline")
            page.route("**/hub/events", lambda route: route.abort())
            expect(page.locator("#lost-text")).to_contain_text("The server does not answer.")
            hub.excused.append("ERR_FAILED")
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("#health-word")).to_have_text("Healthy")


def test_a_page_in_the_background_asks_for_nothing(open_page: Callable[..., Any]) -> None:
    show = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with open_page(path="") as hub:
        page = hub.page
        page.add_init_script(f"({show})(true)")
        page.goto(f"{hub.origin}/hub/")
        page.evaluate("import('/hub/assets/main.js')")  # done once the page has begun
        assert not any("/hub/events" in url for url in hub.requests)
        page.evaluate(show, False)
        expect(model(page, "demo")).to_be_visible()
        page.evaluate(show, True)  # while it reads, then while it waits to do so again
        page.route("**/hub/events", lambda route: route.fulfill())
        page.evaluate(show, False)
        expect(page.locator("#lost")).to_be_visible()
        page.evaluate(show, True)
        asked = len(hub.requests)
        page.evaluate("dispatchEvent(new Event('online'))")  # which ends the wait
        page.evaluate("new Promise((resolve) => setTimeout(resolve))")
        assert len(hub.requests) == asked
