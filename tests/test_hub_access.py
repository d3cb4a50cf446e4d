"""The status page for everyone: by keyboard, by ear, on a phone, in the dark."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser_driver import Watched, chromium, watched
from tests.server import ServerProcess

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}
LEAST_CONTRAST = 4.5  # WCAG AA, text of any size
LEAST_TARGET = 24  # CSS pixels; WCAG 2.2 AA


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def open_page(demo_server: ServerProcess, browser: Browser) -> Callable[..., Any]:
    @contextmanager
    def open_one(**context: Any) -> Iterator[Watched]:
        """The page with something in every part of it."""
        with watched(browser, demo_server.base, "/hub/", **context) as hub:
            expect(hub.page.locator('[data-model="demo"]')).to_be_visible()
            expect(hub.page.locator(".log-line").first).to_be_visible()
            expect(hub.page.locator("#chart path.available")).to_be_attached()
            yield hub

    return open_one


@pytest.fixture(scope="module")
def hub(open_page: Callable[..., Any]) -> Iterator[Watched]:
    with open_page(viewport=DESKTOP) as hub:
        yield hub


def focused(page: Page) -> str:
    """What has the focus, by its id, label or text; "" is the page itself."""
    found: str = page.evaluate(
        """() => {
            const at = document.activeElement;
            if (at === document.body) return "";
            return at.id || at.ariaLabel || at.textContent;
        }"""
    )
    return found


def tab_to(page: Page, wanted: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused(page) == wanted:
            assert (
                page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            ), f"the focus cannot be seen on {wanted}"
            return
    raise AssertionError(f"Tab does not reach {wanted}")


# --- keyboard -------------------------------------------------------------------------------


def test_everything_works_with_the_keyboard_alone(
    open_page: Callable[..., Any], demo_server: ServerProcess
) -> None:
    unload = {"model": "demo-vision"}
    assert httpx.post(f"{demo_server.base}/admin/models/unload", json=unload).status_code == 200
    with open_page(viewport=DESKTOP) as hub:
        page, press = hub.page, hub.page.keyboard.press
        tab_to(page, "Skip to the models")
        press("Enter")
        tab_to(page, "Load demo-vision")
        press("Enter")
        state = page.locator('[data-model="demo-vision"] .state')
        expect(state).to_have_text("Loaded")
        assert focused(page) == "Unload demo-vision"  # it has not gone elsewhere meanwhile
        press("Space")
        expect(state).to_have_text("Not loaded")
        tab_to(page, "chat-model")
        page.keyboard.type("demo")
        tab_to(page, "message")
        page.keyboard.type("What is")
        press("Shift+Enter")
        page.keyboard.type("MLX Router?")
        press("Enter")
        expect(page.locator(".turn.user .turn-text")).to_have_text("What is\nMLX Router?")
        expect(page.locator(".turn-note")).to_contain_text("tokens/s")
        page.keyboard.type("Tell me a story.")
        page.route(
            "**/v1/chat/completions", lambda route: None
        )  # no answer comes: it is still waited for when Escape is pressed
        press("Enter")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        assert focused(page) == "message"
        press("Escape")
        expect(page.locator(".turn-note").last).to_have_text("Stopped")
        expect(page.locator("#message")).to_have_value("Tell me a story.")
        tab_to(page, "log-pause")
        press("Enter")
        expect(page.get_by_role("button", name="Resume")).to_be_focused()


def test_the_focus_stays_when_a_row_before_it_goes(hub: Watched) -> None:
    kept = hub.page.evaluate(
        """async () => {
            const { el, follow } = await import("/hub/assets/dom.js");
            const list = document.querySelector("main").appendChild(el("div"));
            const create = (key) => ({ node: el("button", {}, key) });
            const show = (...keys) => follow(list, keys, (key) => key, create, () => {});
            show("a", "b", "c");
            list.children[1].focus();
            show("b", "c");
            const kept = [document.activeElement.textContent, list.textContent];
            list.remove();
            return kept;
        }"""
    )
    assert kept == ["b", "bc"]


def test_tab_goes_through_the_page_and_leaves_it(hub: Watched) -> None:
    hub.page.evaluate("document.activeElement.blur()")
    seen: list[str] = []
    while len(seen) < 60:
        hub.page.keyboard.press("Tab")
        if focused(hub.page) in ("", *seen[:1]):
            break
        seen.append(focused(hub.page))
    assert 12 < len(seen) < 60
    assert len(set(seen)) == len(seen)


# --- screen readers -------------------------------------------------------------------------


def test_every_control_has_a_name(hub: Watched) -> None:
    nameless = hub.page.evaluate(
        """() => {
            const controls = "button, input, select, textarea, a, summary, dialog, nav, section,"
                + "[role=table], [role=log], [role=img]";
            const words = (ids) => ids.split(" ").map((id) => document.getElementById(id))
                .map((node) => node.textContent).join(" ");
            return [...document.querySelectorAll(controls)].filter((node) => {
                const by = node.getAttribute("aria-labelledby");
                const labels = [...(node.labels ?? [])].map((label) => label.textContent).join("");
                const text = node.matches("button, a, summary") ? node.textContent : "";
                const name = by ? words(by) : node.ariaLabel || labels || text;
                return !name.trim() && node.type !== "file";  // which is behind a button
            }).map((node) => node.outerHTML.slice(0, 120));
        }"""
    )
    assert nameless == []


def test_what_is_seen_on_a_button_is_in_its_name(hub: Watched) -> None:
    differing = hub.page.evaluate(
        """() => [...document.querySelectorAll("button[aria-label]")]
            .filter((node) => !node.ariaLabel.toLowerCase()
                .includes(node.innerText.trim().toLowerCase()))
            .map((node) => `${node.ariaLabel} / ${node.innerText}`)"""
    )
    assert differing == []


def test_the_outline_is_in_order(hub: Watched) -> None:
    page = hub.page
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for landmark in ("banner", "main"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    for name in ("Models", "Requests", "Memory", "Playground", "Log"):
        expect(page.get_by_role("region", name=name)).to_have_count(1)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("img:not([alt])").count() == 0
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("*")].flatMap((node) =>
            ["aria-labelledby", "aria-describedby"]
                .flatMap((name) => (node.getAttribute(name) ?? "").split(" "))
                .filter((id) => id && !document.getElementById(id)))"""
        )
        == []
    )
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


def test_tables_are_tables_to_a_screen_reader_on_a_phone_too(hub: Watched) -> None:
    for size in (DESKTOP, PHONE):
        hub.page.set_viewport_size(size)  # type: ignore[arg-type]
        table = hub.page.get_by_role("table", name="Models")
        expect(table.get_by_role("columnheader")).to_have_count(7)
        row = table.get_by_role("row").filter(has_text="demo-vision")
        expect(row.get_by_role("rowheader")).to_have_count(1)
        assert row.get_by_role("cell").count() >= 6
    hub.page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]


def test_changes_are_said_sparingly(hub: Watched) -> None:
    """What changes every second is not read aloud."""
    spoken = hub.page.evaluate(
        """[...document.querySelectorAll("[role=status], [role=alert], [role=log], [aria-live]")]
            .filter((node) => node.ariaLive !== "off").map((node) => node.id)"""
    )
    assert sorted(spoken) == ["announce", "lost", "stopping"]


# --- eyes -----------------------------------------------------------------------------------

# The least contrast of any text that is shown with what is behind it, and that text.
LEAST_CONTRAST_OF_TEXT = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const band = (level) =>
        getComputedStyle(document.querySelector(`#chart .band-${level}`)).fill;
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        const style = getComputedStyle(node);
        if (!(own || node.matches("input, textarea")) || !node.checkVisibility()) continue;
        if (node.closest("svg")) {
            const level = /of-(\\w+)/.exec(node.getAttribute("class") ?? "")?.[1];
            found.push([ratio(style.fill, level ? band(level) : behind(node)), node.textContent]);
        } else found.push([ratio(style.color, behind(node)), node.textContent || node.id]);
        if (node.placeholder) {
            const colour = getComputedStyle(node, "::placeholder").color;
            found.push([ratio(colour, behind(node)), node.placeholder]);
        }
    }
    return found.sort((one, other) => one[0] - other[0])[0];
}"""

# Every colour of text, on every ground that it may be on.
PAIRS = [
    *((text, ground) for text in ("text", "muted") for ground in ("page", "surface", "raised")),
    *((level, f"{level}-soft") for level in ("good", "moderate", "high", "critical")),
    *((level, "surface") for level in ("good", "moderate", "high", "critical", "accent")),
    *(("accent", "accent-soft"), ("text", "accent-soft"), ("on-accent", "accent")),
    *(("critical", "raised"), ("moderate", "raised")),
]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(theme: Literal["light", "dark"], hub: Watched) -> None:
    page = hub.page
    page.emulate_media(color_scheme=theme)
    page.evaluate(
        """(pairs) => {
            const probes = pairs.map(([colour, ground]) => {
                const probe = document.createElement("p");
                probe.className = "probe";
                probe.textContent = `${colour} on ${ground}`;
                probe.style.color = `var(--${colour})`;
                probe.style.background = `var(--${ground})`;
                return probe;
            });
            document.querySelector("main").append(...probes);
        }""",
        PAIRS,
    )
    contrast, text = page.evaluate(LEAST_CONTRAST_OF_TEXT)
    assert contrast >= LEAST_CONTRAST, text
    page.evaluate("document.querySelectorAll('.probe').forEach((probe) => probe.remove())")
    page.emulate_media(color_scheme="light")


def test_the_theme_follows_the_system_until_one_is_chosen_and_kept(
    open_page: Callable[..., Any],
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with open_page(color_scheme="dark") as hub:
        page = hub.page
        dark = page.evaluate(ground)
        switch = page.get_by_role("button", name="Theme")
        switch.click()
        expect(switch).to_have_accessible_name("Theme: light")
        assert page.evaluate(ground) != dark
        page.reload()
        expect(switch).to_have_accessible_name("Theme: light")
        assert page.evaluate(ground) != dark
        switch.click()
        expect(switch).to_have_accessible_name("Theme: dark")
        assert page.evaluate(ground) == dark


def test_nothing_moves_for_those_who_want_it_so(hub: Watched) -> None:
    moving = """() => {
        const row = document.querySelector(".state");
        row.classList.add("busy");
        return getComputedStyle(row.querySelector(".dot")).animationName;
    }"""
    hub.page.emulate_media(reduced_motion="no-preference")
    assert hub.page.evaluate(moving) == "pulse"
    hub.page.emulate_media(reduced_motion="reduce")
    assert hub.page.evaluate(moving) == "none"
    assert hub.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


# --- phones ---------------------------------------------------------------------------------


def test_a_phone_shows_all_without_sideways_scrolling(
    open_page: Callable[..., Any], demo_server: ServerProcess
) -> None:
    httpx.get(f"{demo_server.base}/{'long' * 100}")
    with open_page(viewport=PHONE, is_mobile=True, has_touch=True) as hub:
        page = hub.page
        page.locator("#message").fill("W" * 300)
        page.locator("#send").tap()
        expect(page.locator(".turn-note")).to_contain_text("tokens/s")
        expect(page.locator("#log-lines")).to_contain_text("longlong")
        page.locator(".settings summary").tap()
        page.locator(".chart-table summary").tap()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == PHONE["width"]
        beyond = page.evaluate(
            """() => [...document.querySelectorAll("main *, header *")].filter((node) =>
                node.checkVisibility() && node.getBoundingClientRect().right > innerWidth + 1)
                .map((node) => node.outerHTML.slice(0, 100))"""
        )
        assert beyond == []
        small = page.evaluate(
            """(least) => [...document.querySelectorAll("button, a, select, summary")]
                .filter((node) => node.checkVisibility() && !node.matches(".skip"))
                .filter((node) => {
                    const { width, height } = node.getBoundingClientRect();
                    return Math.min(width, height) < least;
                }).map((node) => node.outerHTML.slice(0, 100))""",
            LEAST_TARGET,
        )
        assert small == []
