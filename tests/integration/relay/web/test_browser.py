"""The page in a real browser: the map appears, filters narrow it, a refusal is red and explains itself, keys work,
both themes pass an accessibility check, and nothing that a workload says runs.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from services.flows.follow import NoArchive
from services.relay.web.api import Api
from services.relay.web.server import WebServer
from tests.integration.relay.web.test_server import Nodes
from tests.unit.relay.web.cluster import CART, DNS, FRONTEND, REDIS, SCRIPT, SECOND, VISITOR, Shop, party

WAIT_S = 30
RED = "rgb(207, 34, 54)"
EDGE = "workload:shop/Deployment/visitor|workload:shop/Deployment/redis"


class Page:
    """A server in a thread of its own, and what is done in it."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self._loop = asyncio.new_event_loop()
        self._ready, self._end = threading.Event(), asyncio.Event()
        self.url = ""
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        api = Api(self.shop.store, NoArchive(), Nodes(), "1.0", lambda: None)
        async with WebServer(":0", None, api) as server:
            self.url = server.url
            self._ready.set()
            await self._end.wait()

    def __enter__(self) -> Page:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WAIT_S)

    def happen(self, what: Callable[[Shop], None]) -> None:
        """Let flows come in, in the server's own thread."""
        done = threading.Event()

        def act() -> None:
            self.shop.now = time.time_ns() - SECOND // 10
            what(self.shop)
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(WAIT_S)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    shop = Shop(time.time_ns() - 60 * SECOND)
    shop.day()
    with Page(shop) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromium-driver (Debian packages)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield found
    finally:
        found.quit()


class Eyes:
    """What a person does and sees."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser, self.url = browser, url
        self._wait = WebDriverWait(browser, WAIT_S, 0.05, [StaleElementReferenceException])

    def open(self, fragment: str = "", theme: str = "light", width: int = 1280, height: int = 860) -> None:
        """A fresh page."""
        media = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.get("about:blank")
        self.browser.get(f"{self.url}#{fragment}")

    def until(self, condition: Callable[[], Any]) -> Any:
        return self._wait.until(lambda _: condition())

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def each(self, selector: str, expression: str) -> list[str]:
        """An expression of `element` for every one that the selector means, all at one moment."""
        script = f"return [...document.querySelectorAll(arguments[0])].map((element) => {expression})"
        return list(self.browser.execute_script(script, selector))

    def nodes(self) -> set[str]:
        return {name.rpartition("/")[2].rpartition(":")[2] for name in self.each(".node", "element.dataset.node")}

    def style(self, selector: str, name: str) -> str:
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return str(self.browser.execute_script(script, selector, name))

    def text(self, selector: str) -> str:
        return " ".join(self.each(selector, "element.innerText ?? element.textContent"))

    def type(self, text: str) -> None:
        self.browser.find_element(By.ID, "filter").send_keys(text + Keys.ENTER)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def complaints(self) -> list[str]:
        """What the browser has to say, refusals of the content security policy among it."""
        return [str(entry["message"]) for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def eyes(browser: webdriver.Chrome, page: Page) -> Eyes:
    found = Eyes(browser, page.url)
    found.complaints()
    return found


def test_the_map_appears_and_nothing_is_refused_by_the_browser(eyes: Eyes) -> None:
    eyes.open()
    eyes.until(lambda: eyes.nodes() >= {"frontend", "cart", "redis", "visitor", "world", "api.stripe.com"})
    assert len(eyes.all(".edge")) >= 5
    assert eyes.text(".frame text") == "shop"
    assert "1 node" in eyes.text(".health")
    assert "node2 away" in eyes.text(".health")
    assert eyes.all(".flows tbody tr")
    assert eyes.complaints() == []


def test_a_denied_edge_is_red_and_explains_itself(eyes: Eyes) -> None:
    eyes.open()
    edge = f'[data-edge="{EDGE}"]'
    eyes.until(lambda: eyes.all(edge))
    assert eyes.style(f"{edge} .line", "stroke") == RED
    assert eyes.style(f"{edge} .line", "strokeDasharray") != "none", "said without colour as well"
    assert "3 refused" in eyes.text(f"{edge} .tag text")
    eyes.browser.execute_script(
        "document.querySelector(arguments[0]).dispatchEvent(new MouseEvent('click', {bubbles: true}))", edge
    )
    told = eyes.until(lambda: eyes.text(".details .explanation"))
    assert "Default deny" in told
    assert "CiliumNetworkPolicy shop/redis isolates the endpoint" in told
    assert "spec.ingress[0]" in told
    assert "it allows another peer" in told
    assert "POLICY_DENIED" in told
    eyes.until(lambda: "visitor → redis" in eyes.text(".flows > header"))
    eyes.until(lambda: set(eyes.each(".flows tbody tr", "element.classList[0]")) == {"refused"})
    eyes.all(".flows tbody td button")[0].click()
    eyes.until(lambda: "Record" in eyes.text(".details h3").title())


def test_filters_narrow_and_wrong_ones_are_told(eyes: Eyes) -> None:
    eyes.open()
    eyes.until(lambda: "cart" in eyes.nodes())
    eyes.type("--verdict DROPPED --not --port 53")
    eyes.until(lambda: eyes.nodes() == {"visitor", "redis"})
    assert eyes.each(".chip span", "element.innerText") == ["verdict DROPPED", "not port 53"]
    assert "verdict%3DDROPPED" in eyes.browser.current_url
    eyes.type("port=99999")
    eyes.until(lambda: "is no port" in eyes.text("#filter-problem"))
    assert eyes.all(".filter.wrong")
    eyes.press(Keys.BACKSPACE)
    eyes.until(lambda: not eyes.text("#filter-problem") and len(eyes.all(".chip")) == 2)
    eyes.type("colour=red")
    assert "colour is no filter" in eyes.text("#filter-problem")


def test_a_request_leads_to_its_trace(eyes: Eyes, page: Page) -> None:
    trace = {"trace_high": 0xABC, "trace_low": 0xDEF, "parent_span": 7, "trace_flags": 1}
    page.happen(lambda shop: shop.ask(FRONTEND, CART, "/traced", 200, 10, **trace))
    eyes.open("view=table&f=http-path%3D%2Ftraced")
    eyes.until(lambda: "/traced" in eyes.text(".flows tbody"))
    eyes.all(".flows tbody td button")[0].click()
    eyes.until(lambda: f"{0xABC:016x}{0xDEF:016x}" in eyes.text(".details .record"))
    eyes.all(".details .record button")[0].click()
    eyes.until(lambda: any("trace-id" in chip for chip in eyes.each(".chip span", "element.innerText")))
    eyes.until(lambda: len(eyes.all(".flows tbody tr")) == 2)


def test_what_happens_now_appears(eyes: Eyes, page: Page) -> None:
    eyes.open("f=pod%3Dkube-system%2Fcoredns")
    eyes.until(lambda: "No traffic here" in eyes.text(".nothing"))
    page.happen(lambda shop: shop.connect(CART, DNS, destination_port=53, protocol=17))
    eyes.until(lambda: eyes.nodes() == {"cart", "coredns"})
    eyes.until(lambda: "53/UDP" in eyes.text(".flows tbody"))


def test_keys_reach_everything(eyes: Eyes) -> None:
    eyes.open()
    eyes.until(lambda: len(eyes.all(".node")) >= 6)
    eyes.browser.execute_script("document.querySelector('.node[tabindex=\"0\"]').focus()")
    focused = "return document.activeElement.dataset.node ?? ''"
    seen = {eyes.browser.execute_script(focused)}
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_UP) * 2:
        eyes.press(key)
        seen.add(eyes.browser.execute_script(focused))
    assert len(seen) >= 3, "arrows move between nodes"
    assert len(eyes.all('.node[tabindex="0"]')) == 1, "one stop for Tab"
    eyes.press(Keys.ENTER)
    eyes.until(lambda: eyes.all(".details"))
    assert eyes.browser.execute_script("return document.activeElement.id") == "details-title"
    eyes.press(Keys.ESCAPE)
    eyes.until(lambda: not eyes.all(".details"))
    eyes.all(".segments button")[4].click()
    rows = eyes.until(lambda: eyes.all(".connections tbody button"))
    names = [row.get_attribute("aria-label") for row in rows]
    rows[names.index("visitor to redis")].send_keys(Keys.ENTER)
    assert "Default deny" in eyes.until(lambda: eyes.text(".details .explanation"))


def test_a_link_shows_the_same_again_and_time_can_be_chosen(eyes: Eyes) -> None:
    eyes.open("view=table&verdict=refused&window=3600")
    eyes.until(lambda: len(eyes.all(".connections tbody tr")) == 1)
    assert eyes.text(".connections tbody tr").startswith("shop/visitor")
    eyes.open("since=1000&until=2000")
    eyes.until(lambda: "No traffic here" in eyes.text(".nothing"))
    assert eyes.all(".live")[0].text == "Go live"
    eyes.all(".live")[0].click()
    eyes.until(lambda: "cart" in eyes.nodes())


def test_hostile_names_are_text(eyes: Eyes, page: Page) -> None:
    evil = party("10.0.0.66", 1066, "<img src=x onerror=document.title=1>")
    page.happen(lambda shop: (shop.refuse(evil, REDIS), shop.ask(evil, CART, SCRIPT, 200, 10)))  # type: ignore[func-returns-value]
    eyes.open("f=identity%3D1066")
    eyes.until(lambda: any(name.startswith("<img") for name in eyes.nodes()))
    eyes.until(lambda: SCRIPT in eyes.text(".flows tbody"))
    assert eyes.all("img") == []
    assert eyes.browser.title == "Ciliate · service map"
    assert eyes.complaints() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("fragment", "width"), [(f"edge={EDGE}", 1280), ("view=table&f=!port%3D53", 1280), ("", 400)])
def test_accessibility(eyes: Eyes, theme: str, fragment: str, width: int) -> None:
    eyes.open(fragment, theme, width)
    eyes.until(lambda: eyes.all(".edge") or eyes.all(".connections tbody tr"))
    eyes.until(lambda: eyes.all(".flows tbody tr"))
    if fragment.startswith("edge"):
        eyes.until(lambda: eyes.all(".details .explanation"))
    ground = eyes.style("body", "backgroundColor")
    assert ground == {"light": "rgb(244, 246, 249)", "dark": "rgb(14, 18, 23)"}[theme]
    found = Axe().run(eyes.browser, options={"resultTypes": ["violations"]})
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found["violations"]] == []
    wide = eyes.browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert wide, "nothing sticks out sideways"


def test_the_theme_can_be_chosen_and_stays(eyes: Eyes) -> None:
    eyes.open()
    eyes.until(lambda: eyes.all(".node"))
    eyes.browser.find_element(By.CSS_SELECTOR, '[aria-label="Dark theme"]').click()
    assert eyes.style("body", "backgroundColor") == "rgb(14, 18, 23)"
    eyes.open()
    eyes.until(lambda: eyes.all(".node"))
    assert eyes.style("body", "backgroundColor") == "rgb(14, 18, 23)"
    eyes.browser.execute_script("localStorage.clear()")


def test_hundreds_of_workloads_are_drawn(browser: webdriver.Chrome) -> None:
    shop = Shop(time.time_ns() - 60 * SECOND)
    pods = [party(f"10.1.{i // 250}.{i % 250 + 1}", 2000 + i, f"app-{i}", f"team-{i % 12}") for i in range(200)]
    for place, pod in enumerate(pods):
        shop.connect(pod, pods[(place * 7 + 12) % len(pods)])
    shop.refuse(VISITOR, pods[3])
    with Page(shop) as page:
        eyes = Eyes(browser, page.url)
        eyes.open()
        eyes.until(lambda: len(eyes.all(".node")) == 201)
        overlaps = """
          const boxes = [...document.querySelectorAll('.node .card')].map((card) => card.getBoundingClientRect());
          const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
          return boxes.some((a, i) => boxes.some((b, j) => i < j && meet(a, b)));
        """
        assert not eyes.browser.execute_script(overlaps)
        assert len(eyes.all(".frame")) == 13
        eyes.browser.get("about:blank")
