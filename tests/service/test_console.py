"""The console in a real browser, against a real service with two thousand adapters."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from adapters.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from adapters.store import SHIPPED, Registry
from tests.service.running import ADMIN_KEY, KEY, Service, run_service

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")

MANY = 2000
TOTAL = MANY + len([path for path in SHIPPED.iterdir() if path.is_dir()]) + 1  # and one that fails
VIEWS = ("playground", "adapters", "adapters/movies@1", "experiments", "experiments/first", "live")
HOSTILE = "<img src=x onerror='document.title=\"taken over\"'><script>document.title='taken over'</script>"
EXPERIMENTS = """
- name: first
  salt: v1
  arms:
    - {name: control, adapter: base, weight: 50}
    - {name: treatment, adapter: movies, weight: 50}
- name: second
  salt: v1
  arms:
    - {name: control, adapter: movies@1}
    - {name: treatment, adapter: movies}
"""


def copy_of(source: Path, target: Path, **changes: Any) -> Manifest:
    """Another version of an adapter, of the same files, which take no more room."""
    shutil.copytree(source, target, copy_function=os.link)
    (target / MANIFEST).unlink()
    manifest = read_manifest(source).model_copy(update=changes | {"name": target.parent.name})
    write_manifest(target, manifest)
    return manifest


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("console") / "registry"
    shutil.copytree(SHIPPED, root)
    copy_of(root / "movies/1", root / "movies/2", version=2)
    for number in range(MANY):
        description = HOSTILE if number == 7 else f"Number {number} of many."
        copy_of(root / "base/1", root / f"team-{number:04}/1", description=description)
    other = read_manifest(root / "movies/1").base.model_copy(update={"id": "someone/else", "sha256": "ab" * 32})
    copy_of(root / "movies/1", root / "alien/1", base=other)
    return Registry(root)


@pytest.fixture(scope="module")
def running(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    experiments = directory / "experiments.yaml"
    experiments.write_text(EXPERIMENTS)
    settings = {"api_keys": KEY, "admin_keys": ADMIN_KEY, "max_resident_adapters": 8, "experiments_file": experiments}
    with run_service(registry, directory, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with playwright.sync_playwright() as running:
        # As root, as in a container, Chromium's own sandbox cannot be had.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(running: Service, browser: "Browser") -> "Iterator[Page]":
    """A page with a caller's key; whatever its console complains of fails the test."""
    with Watched(browser, running) as (page, complaints):
        open_view(page, running, "playground")
        give_key(page, KEY)
        page.wait_for_selector(".chip")
        yield page
        assert complaints == []


class Watched:
    """A new context's page, and what its console says is wrong."""

    def __init__(self, browser: "Browser", service: Service, **context: Any) -> None:
        self._context = browser.new_context(**context)
        self._context.grant_permissions(["clipboard-read", "clipboard-write"], origin=service.url)

    def __enter__(self) -> "tuple[Page, list[str]]":
        page = self._context.new_page()
        page.set_default_timeout(20_000)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if _is_ours(message.text) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page, complaints

    def __exit__(self, *_: object) -> None:
        self._context.close()


def _is_ours(complaint: str) -> bool:
    """Not that an answer was a 401 or a 404: the browser says so of each, and tests here provoke them."""
    return not complaint.startswith("Failed to load resource: the server responded with a status of 4")


def open_view(page: "Page", service: Service, view: str) -> None:
    page.goto(f"{service.url}/#/{view}")
    page.wait_for_selector("h1")


def give_key(page: "Page", key: str) -> None:
    """Into the dialog that a refusal opens."""
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key-input", key)
    page.press("#key-input", "Enter")
    page.locator("#key-dialog").wait_for(state="hidden")


def classify(page: "Page", text: str) -> "Locator":
    page.fill("#text", text)
    page.press("#text", "Control+Enter")
    page.wait_for_selector(".answers:not([aria-busy]) .answer")
    return page.locator(".answer")


def test_files_are_few_closed_and_open_to_all(running: Service) -> None:
    """Under 150 KiB over the wire, by a policy that lets nothing else in; no key, for there is nothing in them."""
    with httpx.Client(base_url=running.url, headers={"Accept-Encoding": "identity"}) as client:
        index = client.get("/")
        assert index.status_code == 200 and client.get("/adapters").status_code == 401
        policy = index.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        names = {path.name for path in (Path(__file__).parents[2] / "service/console").iterdir()} - {"__init__.py"}
        names = {name for name in names if not name.startswith("__")}
        files = {name: client.get(f"/console/{name}") for name in sorted(names)}
        assert all(file.status_code == 200 for file in files.values())
        plain = len(index.content) + sum(len(file.content) for name, file in files.items() if name != "index.html")
        zipped = client.build_request("GET", "/console/style.css", headers={"Accept-Encoding": "gzip"})
        raw = b"".join(client.send(zipped, stream=True).iter_raw())
        assert raw[:2] == b"\x1f\x8b" and len(raw) < len(files["style.css"].content) / 2
        print(f"the console: {plain / 1024:.0f} KiB uncompressed")
        assert plain < 150 * 1024
        known = {"If-None-Match": files["main.js"].headers["ETag"]}
        assert client.get("/console/main.js", headers=known).status_code == 304
        assert client.get("/console/../settings.py").status_code in (401, 404)
        assert client.get("/console/settings.py").status_code == 404
        addresses = re.compile(r"https?://(?!www\.w3\.org/)")
        assert not [name for name, file in files.items() if addresses.search(file.text)]


def test_loads_within_a_second(running: Service, browser: "Browser") -> None:
    times = []
    for _ in range(3):
        with Watched(browser, running) as (page, _):  # with an empty cache
            open_view(page, running, "playground")
            times.append(page.evaluate("performance.now()"))
            transferred = page.evaluate(
                "[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]"
                ".map(entry => entry.transferSize).reduce((sum, size) => sum + size, 0)"
            )
    print(f"shown after {', '.join(f'{time:.0f}' for time in times)} ms, {transferred / 1024:.0f} KiB over the wire")
    assert min(times) < 1000
    assert 10 * 1024 < transferred < 150 * 1024


def test_playground(running: Service, page: "Page") -> None:
    answers = classify(page, "a film so sure of its charm that it forgets to have any")
    chosen = page.locator(".chip").all_inner_texts()
    assert answers.count() == len(chosen) == 5
    body = {"text": "a film so sure of its charm that it forgets to have any"}
    by_name = {text.split("@")[0]: text for text in answers.all_inner_texts()}
    said = running.client.post("/classify", json=body, headers={"X-Adapter": "movies"}).json()
    assert said["label"] in by_name["movies"] and f"{100 * said['score']:.1f} %" in by_name["movies"]
    assert f"{said['tokens']} tokens" in by_name["movies"]
    assert "in the service: queue" in page.inner_text(".timing")


def test_playground_by_keyboard_alone(running: Service, page: "Page") -> None:
    page.focus(".picker input")
    page.keyboard.type("team-1234")
    page.wait_for_selector(".matches:not([hidden]) button:has-text('team-1234')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator(".chip", has_text="team-1234").count() == 1
    page.keyboard.type("movies@1")
    page.wait_for_selector(".matches:not([hidden]) button:has-text('movies@1')")
    page.keyboard.press("Enter")
    assert page.locator(".chip", has_text="movies@1").count() == 1
    page.keyboard.press("Escape")
    while page.locator(".chip").count() > 2:  # the chips' own buttons, one before the other
        page.locator(".chip button").first.focus()
        page.keyboard.press("Enter")
    page.focus("#text")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".answer")
    assert [text.split("\n")[0] for text in page.locator(".answer").all_inner_texts()] == ["team-1234@1", "movies@1"]


def test_playground_shows_what_was_cut_off(page: "Page") -> None:
    text = "🎬 " + "one of many words " * 200 + "THE END"
    classify(page, text)
    card = page.locator(".answer", has_text="movies@2")
    assert "cut off" in card.inner_text()
    card.locator("summary").last.click()
    cut = card.locator("del").inner_text()
    assert cut.endswith("THE END") and card.locator(".read").inner_text().startswith("🎬 one of many words")
    assert f"{len(cut)} of {len(text):,} characters were not read" in card.inner_text().replace(
        f"{len(cut):,}", str(len(cut))
    )
    page.select_option("#long", "windows")
    page.click("button.primary")
    page.wait_for_selector(".answer:has-text('windows')")
    assert "cut off" not in page.locator(".answer", has_text="movies@2").inner_text()


def test_link_and_command_say_the_same(running: Service, page: "Page", browser: "Browser") -> None:
    """The link shows it to somebody else; the command, in a real shell, answers it."""
    text = 'it\'s "quoted", costs 5 $ & more; `really`\\ – naïve'  # noqa: RUF001
    answers = classify(page, text)
    link, command = page.url, page.inner_text("#curl")
    verdicts = page.locator(".answer .verdict").all_inner_texts()
    done = subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, env={**os.environ, "TONEARM_KEY": KEY}, timeout=60
    )
    items = json.loads(done.stdout)["results"]
    assert len(items) == answers.count()
    assert [item["label"] for item in items] == [verdict.split(" ")[0] for verdict in verdicts]
    page.click("button:has-text('Copy the command')")
    page.wait_for_selector("button:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == command
    with Watched(browser, running) as (other, _):
        other.goto(link)
        other.wait_for_selector("#key-dialog[open]")  # the link holds no key
        give_key(other, KEY)
        other.wait_for_selector(".answer")
        assert other.input_value("#text") == text
        assert other.locator(".answer .verdict").all_inner_texts() == verdicts


def test_playground_says_what_is_wrong(page: "Page", running: Service) -> None:
    classify(page, "fine")
    page.fill(".picker input", "alien")
    page.click(".matches button:has-text('alien')")
    page.press("#text", "Control+Enter")
    page.wait_for_selector(".answer:has-text('someone/else')")
    assert page.locator(".answer .verdict").count() == 5  # the others answer all the same
    page.fill(".picker input", "movies@9")
    page.press(".picker input", "Enter")
    page.wait_for_selector(".chip:has-text('movies@9')")
    page.evaluate("performance.clearResourceTimings()")
    page.press("#text", "Control+Enter")
    page.wait_for_selector(".answers [role=alert]:has-text('movies@9')")
    assert page.locator(".answers button", has_text="movies@2").count() == 1  # the nearest
    page.wait_for_timeout(200)


def test_adapters_by_the_thousand(page: "Page", running: Service) -> None:
    open_view(page, running, "adapters")
    page.wait_for_selector("tbody tr")
    total = f"{TOTAL:,}"
    assert total in page.inner_text("[role=status].dim") and page.locator("tbody tr").count() == 50
    page.click("button:has-text('Next')")
    page.wait_for_selector(f"text=51 to 100 of {total}")
    page.fill("#search", "number 1999 of")
    page.wait_for_selector("text=1 to 1 of 1")
    assert page.locator("tbody a").all_inner_texts() == ["team-1999"]
    page.fill("#search", "")
    page.select_option("#state", "failed")
    page.wait_for_selector("tbody tr:has-text('alien') .reason:has-text('someone/else')")
    page.select_option("#state", "")
    page.fill("#search", "team-0007")
    page.wait_for_selector("tbody a:text-is('team-0007')")  # on the first page of all, too
    page.wait_for_selector("text=1 to 1 of 1")
    assert HOSTILE in page.inner_text("tbody")  # as text
    page.reload()
    give_key(page, KEY)
    page.wait_for_selector("text=1 to 1 of 1")  # the address holds the search
    assert "taken over" not in page.title()


def test_one_adapter_and_its_report(page: "Page", running: Service) -> None:
    open_view(page, running, "adapters/movies@1")
    page.wait_for_selector("table.confusion")
    text = page.inner_text("main")
    metrics = read_manifest(running.registry.root / "movies/1").metrics["accuracy"]
    assert f"{100 * metrics.value:.1f} %" in text and f"{100 * metrics.low:.1f}–{100 * metrics.high:.1f}" in text  # noqa: RUF001
    assert "overfitting" in text and "Expected calibration error" in text
    assert page.locator(".chart svg[role=img]").count() == 2
    report = json.loads((running.registry.root / "movies/1/report/metrics.json").read_text())
    cells = [int(cell) for cell in page.locator("table.confusion tbody td").all_inner_texts()]
    assert cells == [count for row in report["tuned"]["confusion"] for count in row]
    with page.expect_download() as download:
        page.click("button:has-text('The whole report')")
    assert download.value.path().read_bytes() == (running.registry.root / "movies/1/report/index.html").read_bytes()
    page.click("a[href*='playground']:has-text('charm')")
    page.wait_for_selector(".answer:has-text('movies@1')")


def test_administration_takes_its_key(page: "Page", running: Service) -> None:
    open_view(page, running, "adapters/movies@1")
    page.click("button:text-is('Pin')")
    page.wait_for_selector("#key-dialog[open]")
    assert "administrator" in page.inner_text("#key-why")
    give_key(page, ADMIN_KEY)
    page.wait_for_selector("text=No alias")
    page.click("button:text-is('Pin')")
    page.wait_for_selector(".badges .badge:has-text('pinned')")
    page.click("button:text-is('Unload')")
    page.wait_for_selector(".badges .badge.registered")
    page.click("button:text-is('Load')")
    page.wait_for_selector(".badges .badge.resident")
    page.fill("#alias", "champion")
    page.press("#alias", "Enter")
    page.wait_for_selector("td:has-text('version 1')")
    assert running.registry.aliases("movies") == {"champion": 1}
    open_view(page, running, "adapters/movies@2")
    page.wait_for_selector("h1:has-text('movies@2')")
    page.click("button:has-text('Move to 2')")
    page.wait_for_selector("td:has-text('version 2')")
    assert running.classify("x", "movies@champion").json()["adapter"] == "movies@2"
    page.click("button[aria-label='Forget movies@champion']")
    page.wait_for_selector("text=No alias")
    assert running.registry.aliases("movies") == {}
    open_view(page, running, "adapters/alien")
    page.click("button:text-is('Verify')")
    page.wait_for_selector("[role=alert]:has-text('It is refused')")
    held = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert ADMIN_KEY not in held and held.startswith('[{},{},""')
    page.wait_for_timeout(200)


def test_experiment(page: "Page", running: Service) -> None:
    """Half right with the base, all with movies: the page says what the service says, and ends it."""
    texts = ["a stirring film", "a dull and lifeless mess", "an utter delight", "a waste of two hours"]
    for number in range(120):
        answer = running.client.post("/classify", json={"text": texts[number % 4]}, headers={"X-Unit-Id": f"u{number}"})
        said = answer.json()
        other = {"positive": "negative", "negative": "positive"}[said["label"]]
        right = said["arm"] == "treatment" or number % 2
        running.client.post(
            "/feedback", json={"request_id": said["request_id"], "label": said["label"] if right else other}
        )
    open_view(page, running, "experiments")
    page.wait_for_selector("tbody tr")
    assert page.locator("tbody tr").count() == 2
    page.click("tbody a:text-is('first')")
    page.wait_for_selector(".verdict-line")
    found = running.client.get("/experiments/first").json()
    assert found["summary"] in page.inner_text(".verdict-line") and "treatment is better" in found["summary"]
    looks = running.client.get("/experiments/first/history").json()["looks"]
    assert looks[-1]["differences"][0]["anytime"] == pytest.approx(found["differences"][0]["anytime"])
    assert sum(looks[-1]["labelled"].values()) == 120
    assert page.locator(".chart path.band").count() == 1 and "zero left" in page.inner_text(".chart")
    assert "Sample-ratio check passed" in page.inner_text("main")
    page.fill("#difference", "5")
    page.click("button:has-text('Plan')")
    page.wait_for_selector("text=labelled units an arm")
    plan = running.client.get("/experiments/first/plan?difference=0.05&power=0.8").json()
    assert f"{plan['anytime']:,}" in page.inner_text("main")
    open_view(page, running, "experiments/second")
    page.wait_for_selector(".verdict-line:has-text('Too little feedback')")
    page.fill("#reason", "seen enough")
    page.click("button:has-text('Stop')")
    page.wait_for_selector("#key-dialog[open]")
    give_key(page, ADMIN_KEY)
    page.wait_for_selector(".verdict-line")
    page.fill("#reason", "seen enough")
    page.click("button:has-text('Stop')")
    page.wait_for_selector(".decisions:has-text('seen enough')")
    assert running.client.get("/experiments/second").json()["state"] == "stopped"
    page.wait_for_timeout(200)


def test_live(page: "Page", running: Service) -> None:
    open_view(page, running, "live")
    ending = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            while not ending.is_set():
                client.post("/classify", json={"text": "busy"}, headers={"X-Adapter": "movies@1"})

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        page.wait_for_selector("th:has-text('movies@1')")
        page.wait_for_function("() => parseFloat(document.querySelector('.big').textContent) > 1")
        text = page.inner_text(".tiles")
        assert re.search(rf"Resident\s+8\s+of {TOTAL:,} names; 1 failed", text), text
        assert re.search(r"Latency\s+[\d.]+ m?s\s+p99 [\d.]+ m?s", text), text
        assert page.locator(".plot svg").count() == 6
        assert page.locator("tr:has-text('worker 0') .badge.resident").count() == 1
    finally:
        ending.set()
        caller.join()


def test_nothing_in_the_way_of_anybody(running: Service, browser: "Browser") -> None:
    """axe-core, WCAG A and AA, finds nothing serious in any view, by day or by night."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    found: list[tuple[str, ...]] = []

    def look(page: "Page", view: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            report = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
            found.extend(
                (view, scheme, violation["id"], node["html"], node["failureSummary"])
                for violation in report.response["violations"]
                if violation["impact"] in ("serious", "critical")
                for node in violation["nodes"]
            )

    with Watched(browser, running, reduced_motion="reduce") as (page, _):
        open_view(page, running, "playground")
        give_key(page, KEY)
        for view in VIEWS:
            open_view(page, running, view)
            page.wait_for_selector({"playground": ".chip", "live": ".tile"}.get(view, "table"))
            if view == "playground":
                classify(page, "word " * 400)
                page.locator(".answer summary").first.click()
            look(page, view)
        page.click("#key-button")
        look(page, "key")
    assert found == []


def test_on_a_phone(running: Service, browser: "Browser") -> None:
    """Nothing sticks out sideways, and what is pressed is large enough to be."""
    with Watched(browser, running, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as (page, _):
        open_view(page, running, "playground")
        give_key(page, KEY)
        for view in VIEWS:
            open_view(page, running, view)
            page.wait_for_selector({"playground": ".chip", "live": ".tile"}.get(view, "table"))
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, (view, wide)
            small = page.evaluate(
                "[...document.querySelectorAll('button, nav a')].filter(e => e.checkVisibility())"
                ".map(e => [e.textContent, e.getBoundingClientRect()])"
                ".filter(([, box]) => Math.min(box.height, box.width) < 24).map(([text]) => text)"
            )
            assert small == [], view
