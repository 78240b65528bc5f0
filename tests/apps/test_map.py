"""The live map in a real browser before a real server: what it shows, and what becomes of it when things go wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_core.geodesy import GEOD
from localize_core.model.compiled.compile import compile_model
from localize_core.model.contract import Receiver
from localize_core.resources import shared_file
from localize_core.service.app import STATIC
from localize_core.service.history import FixHistory
from localize_core.service.server import HttpServer
from localize_core.service.service import Service, StationInfo, station_service
from localize_core.service.settings import HttpSettings
from localize_core.serving.engine import Engine
from localize_core.serving.requests import Request
from localize_core.serving.settings import ServingSettings
from localize_core.simulation.scene import Scene
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import (
    REASONS,
    RECEIVER_FLAGS,
    Fix,
    ModelIdentity,
    Position,
    ReceiverReport,
    TrackReport,
    Uncertainty,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
pytest.importorskip("uvicorn", reason="no web server here: pip install gr-localize[serve]")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=\"window.attacked='yes'\">"
NORTH = Receiver(name="north", latitude=45.2, longitude=7.4)
SOUTH = Receiver(name="south", latitude=45.0, longitude=7.6)
DEMO = StationInfo("demo", 433.92e6, (NORTH, SOUTH), (44.9, 7.2, 45.3, 7.8))
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
REFUSED = "net::ERR_CONNECTION_REFUSED"

EMITTERS = "() => localizeMap.view().emitters"
FIRST = "() => localizeMap.view().emitters[0]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def desktop(browser: Any) -> Any:
    """What most pages of this file are opened in: every server has a port, so storage, of its own."""
    return browser.new_context(
        viewport={"width": 1280, "height": 800}, permissions=["clipboard-read", "clipboard-write"]
    )


@pytest.fixture(scope="module")
def phone(browser: Any) -> Any:
    return browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)


class Opened:
    """Pages of one test. What they asked for and complained about is in `requests` and `complaints`."""

    def __init__(self) -> None:
        self._pages: list[Any] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.expected: tuple[str, ...] = ()

    def open(self, context: Any, url: str, *, before: Callable[[Any], None] | None = None) -> Any:
        """A new page. `before`: what is to be done with it before it loads."""
        page = context.new_page()
        self._pages.append(page)
        page.set_default_timeout(15_000.0)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        if before is not None:
            before(page)
        page.goto(url)
        return page

    def close(self) -> None:
        for page in self._pages:
            page.close()


@pytest.fixture
def pages(serve: Callable[..., HttpServer]) -> Iterator[Opened]:
    """Pages that are closed before their servers stop.

    They ask nobody but this machine, and have nothing to complain about but what the test expects.
    """
    opened = Opened()
    yield opened
    opened.close()
    assert {url.split("/")[2].split(":")[0] for url in opened.requests if not url.startswith("data:")} == {"127.0.0.1"}
    assert [text for text in opened.complaints if not any(word in text for word in opened.expected)] == []


@pytest.fixture
def serve() -> Iterator[Callable[..., HttpServer]]:
    """A starter of servers that are stopped after the test."""
    servers: list[HttpServer] = []

    def start(service: Service, **settings: Any) -> HttpServer:
        servers.append(HttpServer(service, HttpSettings(**{"port": 0} | settings)))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def fix_at(make_fix: Callable[..., Fix]) -> Callable[..., Fix]:
    """A maker of fixes number n, a second apart, at a latitude and longitude."""

    def make(number: int, latitude: float = 45.1, longitude: float = 7.5, **changes: Any) -> Fix:
        place = {} if "reason" in changes else {"position": Position(latitude, longitude)}
        return make_fix(**{"sequence": number, "timestamp": BEGAN + timedelta(seconds=number)} | place | changes)

    return make


def wait(page: Any, condition: str, argument: Any = None) -> None:
    page.wait_for_function(condition, arg=argument)


def wait_for_fix(page: Any, sequence: int) -> None:
    wait(page, "number => localizeMap.view().emitters.some(({ fix }) => fix.sequence === number)", sequence)


def without_tiles(page: Any) -> None:
    """Have the page get empty pictures for tiles."""
    empty = "<svg xmlns='http://www.w3.org/2000/svg'/>"
    page.route("**/tiles/**", lambda route: route.fulfill(body=empty, content_type="image/svg+xml"))


def shown_box(page: Any) -> tuple[float, float, float, float]:
    """South, west, north, east of what the map shows."""
    west, south, east, north = page.evaluate("() => localizeMap.map.getBounds().toBBoxString().split(',').map(Number)")
    return south, west, north, east


def colour_at(page: Any, latitude: float, longitude: float) -> list[int]:
    """Red, green, blue, opacity of what is drawn there."""
    return page.evaluate(
        """async ([latitude, longitude]) => {
            await new Promise(requestAnimationFrame);
            const canvas = document.querySelector(".leaflet-fixes-pane canvas");
            const { x, y } = localizeMap.map.latLngToContainerPoint([latitude, longitude]);
            return [...canvas.getContext("2d").getImageData(Math.round(x), Math.round(y), 1, 1).data];
        }""",
        [latitude, longitude],
    )


def rgb(colour: str) -> list[int]:
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


def test_fixes_appear_and_move(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    page = pages.open(desktop, serve(service).url)
    page.get_by_text("No fixes yet").first.wait_for()
    wait(page, "() => localizeMap.view().receivers.length === 2")
    service.publish(fix_at(1, 45.1, 7.5))
    wait_for_fix(page, 1)
    before = page.evaluate(FIRST)
    assert before["fix"]["position"] == {"latitude": 45.1, "longitude": 7.5}
    assert colour_at(page, 45.1, 7.5) == [*rgb(before["colour"]), 255]
    assert colour_at(page, 45.15, 7.55)[3] == 0

    service.publish(fix_at(2, 45.15, 7.55))
    wait_for_fix(page, 2)
    assert colour_at(page, 45.15, 7.55) == [*rgb(before["colour"]), 255]
    assert page.evaluate(FIRST)["trail"] == [{"latitude": 45.1, "longitude": 7.5}]
    page.get_by_label("Trail").select_option("none")
    wait(page, "() => localizeMap.view().emitters[0].trail.length === 0")

    assert page.evaluate("() => localizeMap.view().areas") == [{"south": 44.9, "west": 7.2, "north": 45.3, "east": 7.8}]
    south, west, north, east = shown_box(page)
    assert west < 7.4
    assert east > 7.6
    assert south < 45.0
    assert north > 45.2


def test_tracks_have_a_line_an_arrow_and_an_ellipse(pages, desktop, serve, fix_at) -> None:
    rows = ((1.0, 0.0, 0.0, 0.0),) * 4
    track = TrackReport(
        3, "confirmed", Position(45.1, 7.5), Uncertainty(300.0, 100.0, 0.0), 0.0, 300.0, rows, 5, 2.0, 0.0
    )
    service = Service(stations=(DEMO,))
    page = pages.open(desktop, serve(service).url)
    for number in range(4):  # along a meridian, beside which no fix and no trail lies
        there = replace(track, position=Position(45.1 + 0.02 * number, 7.45))
        changes = {"reason": "silence"} if number == 3 else {}
        service.publish(fix_at(number, 45.0, 7.7, tracks=(there,), **changes))
    wait_for_fix(page, 3)
    shown = page.evaluate(FIRST)
    (drawn,) = shown["tracks"]
    assert [place["latitude"] for place in drawn["line"]] == pytest.approx([45.16, 45.14, 45.12, 45.1])
    azimuth_deg, _, ahead_m = GEOD.inv(7.45, 45.16, drawn["ahead"]["longitude"], drawn["ahead"]["latitude"])
    assert (azimuth_deg, ahead_m) == pytest.approx((0.0, 1500.0), abs=0.01)
    _, _, distance_m = GEOD.inv(np.full(128, 7.45), np.full(128, 45.16), *np.array(drawn["ring"])[:, ::-1].T)
    assert distance_m.max() == pytest.approx(there.uncertainty.semi_major_m, rel=0.005)
    assert colour_at(page, 45.13, 7.45)[3] == 255
    page.get_by_text("#3 300.0 m/s towards 0°").wait_for()

    service.publish(fix_at(4, 45.0, 7.7, stream="another", tracks=(track,)))  # numbers begin anew with the stream
    wait_for_fix(page, 4)
    assert [len(each["line"]) for each in page.evaluate(FIRST)["tracks"]] == [1]
    service.publish(fix_at(5, 45.0, 7.7))
    wait_for_fix(page, 5)
    assert page.evaluate(FIRST)["tracks"] == []
    assert colour_at(page, 45.13, 7.45)[3] == 0


ELLIPSES = (
    (45.123, 7.456, Uncertainty(45.0, 38.0, 25.0)),
    (-70.0, 179.999, Uncertainty(20e3, 4e3, 140.0, probability=0.9)),
    (0.0, -120.0, Uncertainty(3e3, 90e3, 0.0, probability=0.5)),
)


def test_ellipses_measure_what_they_say(pages, desktop, serve, fix_at) -> None:
    service = Service()
    page = pages.open(desktop, serve(service).url)
    for number, (latitude, longitude, uncertainty) in enumerate(ELLIPSES):
        service.publish(fix_at(number, latitude, longitude, uncertainty=uncertainty))
        wait_for_fix(page, number)
        ring = np.array(page.evaluate(FIRST)["ring"])
        there = np.full(len(ring), longitude), np.full(len(ring), latitude)
        azimuth_deg, _, distance_m = GEOD.inv(*there, ring[:, 1], ring[:, 0])
        assert distance_m.max() == pytest.approx(uncertainty.semi_major_m, rel=0.005)
        assert distance_m.min() == pytest.approx(uncertainty.semi_minor_m, rel=0.005)
        turned_deg = (azimuth_deg[np.argmax(distance_m)] - uncertainty.azimuth_deg + 90.0) % 180.0 - 90.0
        assert turned_deg == pytest.approx(0.0, abs=0.5)
        area_m2, _ = GEOD.polygon_area_perimeter(ring[:, 1], ring[:, 0])
        assert abs(area_m2) == pytest.approx(np.pi * uncertainty.semi_major_m * uncertainty.semi_minor_m, rel=0.005)

        page.get_by_role("button", name="Fit").click()
        south, west, north, east = shown_box(page)
        turns = 360.0 * np.round(((west + east) / 2.0 - ring[:, 1]) / 360.0)
        assert ((ring[:, 1] + turns > west) & (ring[:, 1] + turns < east)).all()
        assert ((ring[:, 0] > south) & (ring[:, 0] < north)).all()
        assert north - south < 8.0 * np.ptp(ring[:, 0])


def test_stations_and_emitters_are_told_apart(pages, desktop, serve, fix_at) -> None:
    other = StationInfo("ridge", 145.5e6, (Receiver(name="tower", latitude=45.05, longitude=7.3),))
    service = Service(stations=(DEMO, other))
    service.publish(fix_at(1, 45.10, 7.50))
    service.publish(fix_at(2, 45.12, 7.52, frequency_hz=868.3e6))
    service.publish(fix_at(3, 45.14, 7.54, station="ridge", frequency_hz=145.5e6))
    page = pages.open(desktop, serve(service).url)
    wait_for_fix(page, 3)
    emitters = page.evaluate(EMITTERS)
    assert [each["label"] for each in emitters] == ["demo 433.92 MHz", "demo 868.3 MHz", "ridge 145.5 MHz"]
    assert len({each["colour"] for each in emitters}) == 3
    assert [page.evaluate(f"() => localizeMap.view().emitters[{k}].fix.sequence") for k in range(3)] == [1, 2, 3]

    page.get_by_role("checkbox", name="Show demo, 868.3 MHz").uncheck()
    wait(page, "() => localizeMap.view().emitters.length === 2")
    assert colour_at(page, 45.12, 7.52)[3] == 0
    demo = page.get_by_role("article").filter(has_text="demo")
    demo.get_by_role("checkbox", name="Receivers and area").uncheck()
    wait(page, "() => localizeMap.view().receivers.map(({ name }) => name).join() === 'tower'")
    assert page.evaluate("() => localizeMap.view().areas") == []

    details = page.get_by_role("region", name="demo 433.92 MHz")
    details.wait_for()
    page.get_by_role("button", name=re.compile("145.5 MHz")).click()
    page.get_by_role("region", name="ridge 145.5 MHz").wait_for()
    point = page.evaluate("() => localizeMap.map.latLngToContainerPoint([45.1, 7.5])")
    page.locator("#map").click(position=point)
    details.wait_for()

    # The same colours when the page is opened anew.
    service.publish(fix_at(4, station="ridge", frequency_hz=145.5e6))
    reopened = pages.open(desktop, serve(service).url)
    wait_for_fix(reopened, 4)
    assert {each["key"]: each["colour"] for each in reopened.evaluate(EMITTERS)} == {
        each["key"]: each["colour"] for each in emitters
    }


def test_emitters_without_end_make_room_for_one_another(pages, desktop, serve, fix_at) -> None:
    service = Service()
    page = pages.open(desktop, serve(service).url)
    for number in range(100):
        service.publish(fix_at(number, frequency_hz=100e6 + number * 1e6))
    wait_for_fix(page, 99)
    wait(page, "() => document.querySelectorAll('#fixes tr').length === 60")
    assert {each["fix"]["sequence"] for each in page.evaluate(EMITTERS)} == set(range(40, 100))
    assert page.get_by_role("checkbox", name=re.compile("^Show")).count() == 60


def test_details_say_all_of_a_fix(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    receivers = (
        ReceiverReport("north", -71.2, True, ("saturated",)),
        ReceiverReport("south", None, False, ("silent",)),
    )
    uncertainty = Uncertainty(1000.0, 500.0, 25.0)
    service.publish(fix_at(1, dropped_windows=2))
    service.publish(fix_at(2, receivers=receivers, uncertainty=uncertainty, cache_hit=True, dropped_windows=3))
    page = pages.open(desktop, serve(service).url)
    wait_for_fix(page, 2)
    details = page.get_by_role("region", name="demo 433.92 MHz")
    details.get_by_text("2026-01-02 03:04:07.000 UTC").wait_for()
    text = details.inner_text()
    for part in (
        "45.10000, 7.50000",
        "2.45 km × 1.22 km, holds 95 %",
        "65° from true north",
        "92 %",
        "433.92 MHz",
        "localization_model, version 3 (champion), onnxruntime",
        "answer of an earlier, alike window",
        "4.2 ms, of them inference 1.9 ms",
        "3 windows before this fix, 5 since the page was opened",
        "-71.2 dB",
        "saturated, the level is a lower bound",
        "not used; only zeros, left out",
    ):
        assert part in text, part
    details.get_by_role("button", name="Copy the position").click()
    page.get_by_text("position copied").wait_for(state="attached")
    assert page.evaluate("() => navigator.clipboard.readText()") == "45.100000, 7.500000"
    row = page.get_by_role("region", name="Table of the latest fixes").get_by_role("row", name=re.compile("^demo"))
    assert "45.10000, 7.50000" in row.inner_text()

    page.get_by_role("button", name="UTC").click()
    page.get_by_role("button", name="Local time").wait_for()
    assert "UTC" not in details.locator("dd").nth(1).inner_text() or page.evaluate(
        "() => new Date(0).getTimezoneOffset() === 0"
    )


def test_no_fix_is_a_state_and_no_place(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    page = pages.open(desktop, serve(service).url)
    service.publish(fix_at(1))
    wait_for_fix(page, 1)
    service.publish(fix_at(2, reason="silence"))
    wait_for_fix(page, 2)
    emitter = page.evaluate(FIRST)
    assert (emitter["fix"]["status"], emitter["ring"]) == ("no_fix", None)
    assert emitter["trail"] == [{"latitude": 45.1, "longitude": 7.5}]
    assert colour_at(page, 45.1, 7.5)[3] < 255
    for region in ("demo 433.92 MHz", "Stations", "Table of the latest fixes"):
        page.get_by_role("region", name=region).get_by_text("no fix: every receiver delivers zeros").wait_for()
    assert page.get_by_role("button", name="Copy the position").is_hidden()


def test_modules_are_loaded_at_once() -> None:
    modules = {path.relative_to(STATIC.parent).as_posix() for path in STATIC.glob("*.js")}
    modules |= {path.relative_to(STATIC.parent).as_posix() for path in STATIC.glob("vendor/eventsource-parser/*.js")}
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<link rel="modulepreload" href="([^"]*)">', page)) == modules - {"static/map.js"}


def test_words_for_reasons_and_flags_are_all_there() -> None:
    text = (STATIC / "format.js").read_text(encoding="utf-8")
    for name, wanted in (("REASONS", REASONS), ("FLAGS", RECEIVER_FLAGS)):
        block = re.search(rf"^export const {name} = {{\n(.*?)^}};", text, re.MULTILINE | re.DOTALL)
        assert block is not None
        assert set(re.findall(r'^  (\w+): ".+",$', block[1], re.MULTILINE)) == set(wanted)


def test_it_comes_back_after_the_server_was_started_again(pages, desktop, serve, fix_at) -> None:
    pages.expected = (REFUSED, "ERR_INCOMPLETE_CHUNKED_ENCODING")
    first = serve(Service(stations=(DEMO,)))
    page = pages.open(desktop, first.url)
    for number in range(1, 6):
        first.service.publish(fix_at(number))
    wait_for_fix(page, 5)
    first.stop()
    notice = page.locator("#notice")
    notice.wait_for()
    assert re.match(r"No connection since \d\d:\d\d:\d\d, trying again", notice.inner_text())
    assert page.evaluate("() => localizeMap.view().outdated")

    second = serve(Service(stations=(DEMO,)), port=first.port)
    page.get_by_text("Connected", exact=True).first.wait_for()
    second.service.publish(fix_at(1, 45.12, 7.52, stream="second"))
    wait(page, "() => localizeMap.view().emitters[0].fix.stream === 'second'")
    assert not page.evaluate("() => localizeMap.view().outdated")
    assert page.evaluate("() => localizeMap.view().kept") == 6
    assert page.locator("#announcer").inner_text() == "the server was started again"


def test_a_token_opens_the_page_and_is_missed_when_it_is_gone(pages, desktop, serve, fix_at) -> None:
    pages.expected = (REFUSED, "ERR_INCOMPLETE_CHUNKED_ENCODING", "401")
    service = Service()
    service.publish(fix_at(1))
    server = serve(service, token="0123456789abcdef")
    page = pages.open(desktop, f"{server.url}?token=0123456789abcdef")
    wait_for_fix(page, 1)
    assert "token" not in page.url
    desktop.clear_cookies()
    server.stop()
    serve(service, token="fedcba9876543210", port=server.port)
    page.locator("#notice").get_by_text("The server wants a token: open the page as /?token=…").wait_for()


def test_what_was_missed_is_counted(pages, desktop, serve, fix_at) -> None:
    pages.expected = (REFUSED, "ERR_INCOMPLETE_CHUNKED_ENCODING")
    service = Service(history=FixHistory(50))
    first = serve(service)
    page = pages.open(desktop, first.url)
    service.publish(fix_at(1))
    wait_for_fix(page, 1)
    first.stop()
    page.locator("#notice").wait_for()
    for number in range(2, 202):
        service.publish(fix_at(number))
    serve(service, port=first.port)
    wait_for_fix(page, 201)
    page.get_by_text("150 skipped").wait_for()
    assert page.evaluate("() => localizeMap.view().kept") == 51
    assert page.locator("#announcer").inner_text() != "the server was started again"


def test_names_are_text_whatever_they_say(pages, desktop, serve, fix_at) -> None:
    station = StationInfo(HOSTILE, None, (Receiver(name=HOSTILE, latitude=45.0, longitude=7.0),))
    service = Service(stations=(station,))
    report = (ReceiverReport(HOSTILE, -50.0, True),)
    model = ModelIdentity(HOSTILE, HOSTILE, "0" * 64, HOSTILE, HOSTILE)
    service.publish(fix_at(1, station=HOSTILE, stream=HOSTILE, receivers=report, model=model, frequency_hz=None))
    links = '<a href="javascript:attacked()">a</a> <a href="https://example.org/" onclick="attacked()">b</a>'
    server = serve(service, tiles="/tiles/{z}/{x}/{y}.png", attribution=f"{HOSTILE} {links}")
    page = pages.open(desktop, server.url, before=without_tiles)
    wait_for_fix(page, 1)
    page.get_by_role("region", name=f"{HOSTILE} no frequency").get_by_text(f"{HOSTILE}, version {HOSTILE}").wait_for()
    assert page.get_by_role("link", name="b", exact=True).evaluate("link => link.outerHTML") == (
        '<a href="https://example.org/">b</a>'
    )
    assert page.get_by_role("link", name="a", exact=True).count() == 0
    assert page.locator("img:not(.leaflet-tile)").count() == 0
    assert page.evaluate("() => window.attacked") is None


def test_the_past_can_be_looked_at(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    for number in range(1200):
        service.publish(fix_at(number, 45.0 + number * 1e-4))
    page = pages.open(desktop, serve(service).url)
    wait_for_fix(page, 1199)
    slider = page.get_by_role("slider", name="Fix that is shown")
    assert slider.get_attribute("aria-valuetext") == "2026-01-02 03:24:04.000 UTC, live"
    page.get_by_role("button", name="Pause").click()
    service.publish(fix_at(1200, 45.12))
    slider.press("ArrowLeft")
    wait_for_fix(page, 1198)
    emitter = page.evaluate(FIRST)
    assert emitter["fix"]["position"]["latitude"] == 45.0 + 1198 * 1e-4
    assert len(emitter["trail"]) == 200
    page.get_by_text("shown as it was then").wait_for()

    slider.press("Home")  # to the oldest that the page has; what is older comes page by page
    wait(page, "() => localizeMap.view().kept === 1000")
    wait_for_fix(page, 700)
    slider.press("Home")
    wait(page, "() => localizeMap.view().kept === 1200")
    slider.press("Home")
    wait_for_fix(page, 0)
    assert page.get_by_role("button", name="One fix back").is_disabled()
    page.get_by_role("button", name="One fix on").click()
    wait_for_fix(page, 1)
    assert slider.get_attribute("aria-valuetext") == "2026-01-02 03:04:06.000 UTC, fix 2 of 1\u202f200"

    page.get_by_role("button", name="Go live").click()
    wait_for_fix(page, 1200)
    assert not page.evaluate("() => localizeMap.view().paused")


@pytest.fixture
def located(tmp_path) -> Iterator[tuple[Service, Request]]:
    """The example of four receivers as a service, its compiled model ready to answer a request of what they hear."""
    station = load_station(shared_file(Path("examples/four_receivers.toml")))
    path = tmp_path / "compiled.onnx"
    plan = plan_station(station)
    compile_model(plan.spec, path)
    engine = Engine(ServingSettings(uri=str(path), poll_s=0.0), station=station.station.name)
    engine.prepare(plan.time_steps)
    engine.start(live=False)
    receivers = engine.contract.receivers
    rate_hz, frequency_hz = station.station.sample_rate_hz, station.station.frequency_hz
    scene = Scene(station.played_scene, receivers, sample_rate_hz=rate_hz, frequency_hz=frequency_hz)
    yield station_service(station, engine), Request("1", scene.samples(0, int(0.4 * rate_hz)), start=scene.time(0))
    engine.stop()
    engine.close()


def test_the_likelihood_lies_where_the_emitter_is(pages, desktop, serve, located) -> None:
    service, request = located
    pages.expected = ("404",)
    page = pages.open(desktop, serve(service).url)
    button = page.get_by_role("button", name="Likelihood of four-receivers")
    button.click()
    page.get_by_text("there was no window yet").wait_for()
    assert page.evaluate("() => localizeMap.view().heat") is None

    (fix,) = service.engine.predict([request])
    service.publish(fix)
    button.click()
    button.click()
    page.get_by_text("48 × 48 cells").wait_for()
    area = page.evaluate("() => localizeMap.view().areas[0]")
    bounds = page.evaluate("() => localizeMap.view().heat.bounds.split(',').map(Number)")
    assert bounds == [area["west"], area["south"], area["east"], area["north"]]
    brightest = page.evaluate(
        """() => {
            const canvas = document.querySelector("canvas.heat");
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const cells = Array.from({ length: width * height }, (_, k) => k).filter((k) => data[4 * k] > 230);
            const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
            const box = canvas.getBoundingClientRect();
            const map = document.getElementById("map").getBoundingClientRect();
            const x = box.left - map.left + ((mean(cells.map((k) => k % width)) + 0.5) / width) * box.width;
            const y = box.top - map.top + ((mean(cells.map((k) => Math.floor(k / width))) + 0.5) / height) * box.height;
            return localizeMap.map.containerPointToLatLng([x, y]);
        }"""
    )
    assert brightest["lat"] == pytest.approx(fix.position.latitude, abs=(area["north"] - area["south"]) / 48)
    assert brightest["lng"] == pytest.approx(fix.position.longitude, abs=(area["east"] - area["west"]) / 48)
    legend = page.get_by_text("Smallest region that holds")
    legend.wait_for()
    page.get_by_role("button", name="Pause").click()
    legend.wait_for(state="hidden")  # it says nothing of the past
    page.get_by_role("button", name="Go live").click()
    legend.wait_for()
    button.click()
    assert page.evaluate("() => localizeMap.view().heat") is None
    assert page.locator("canvas.heat").count() == 0

    button.click()
    page.locator("canvas.heat").wait_for()
    service.engine.close()
    button.wait_for(state="hidden")
    assert page.evaluate("() => localizeMap.view().heat") is None


def test_shares_of_probability(pages, desktop, serve) -> None:
    page = pages.open(desktop, serve(Service()).url)
    shares = page.evaluate(
        """async () => {
            const { shares } = await import("/static/heatmap.js");
            return [shares([0.1, 0.5, 0.3, 0.1]), shares([0.25, 0.25, 0.25, 0.25]), shares([0, 1, 0, 0])];
        }"""
    )
    assert shares[0] == pytest.approx([0.8, 0.0, 0.5, 0.8], abs=1 / 64)
    assert shares[1] == [0.0] * 4
    assert shares[2][1] == 0.0
    assert min(shares[2][0], *shares[2][2:]) > 0.98


def luminance(colour: list[int]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in np.array(colour) / 255.0]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, other: str) -> float:
    """As WCAG 2.2 defines it."""
    low, high = sorted(luminance(rgb(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark(pages, desktop, serve) -> None:
    page = pages.open(desktop, serve(Service()).url)
    wait(page, "() => window.localizeMap")
    read = "() => document.documentElement.dataset.theme"
    colours = page.evaluate("async () => (await import('/static/palette.js')).COLOURS")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        wait(page, "scheme => document.documentElement.dataset.theme === scheme", scheme)
        value = {
            name: page.evaluate(
                "name => getComputedStyle(document.documentElement).getPropertyValue(name)", f"--{name}"
            )
            for name in ("ink", "muted", "accent", "accent-ink", "good", "bad", "panel", "ground", "control")
        }
        for ink in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(value[ink], value["panel"]) >= 4.5, ink
            assert contrast(value[ink], value["ground"]) >= 4.5, ink
        assert contrast(value["ink"], value["control"]) >= 4.5
        assert contrast(value["accent-ink"], value["accent"]) >= 4.5
        assert min(contrast(colour, value["ground"]) for colour in colours) >= 3.0

    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(read) == "dark"
    page.reload()
    wait(page, "() => window.localizeMap")
    assert page.evaluate(read) == "dark"


def test_on_a_phone_the_panel_is_a_sheet(pages, phone, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    service.publish(fix_at(1))
    page = pages.open(phone, serve(service).url)
    wait_for_fix(page, 1)
    details = page.get_by_role("region", name="demo 433.92 MHz")
    toggle = page.get_by_role("button", name=re.compile("^demo 433.92 MHz: 45.10000, 7.50000"))
    assert toggle.get_attribute("aria-expanded") == "false"
    assert details.count() == 0
    assert page.locator("#map").bounding_box()["height"] > 350
    toggle.tap()
    details.wait_for()
    assert toggle.get_attribute("aria-expanded") == "true"
    assert page.locator("#map").bounding_box()["height"] > 120
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('header button, #timeline button')].map((each) => each.offsetHeight)"
    )
    assert min(sizes) >= 40
    toggle.tap()
    details.wait_for(state="hidden")


def test_everything_can_be_done_with_the_keyboard(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    for number in range(10):
        service.publish(fix_at(number))
    page = pages.open(desktop, serve(service).url)
    wait_for_fix(page, 9)
    focused = """() => {
        const { ariaLabel, innerText, id, labels } = document.activeElement;
        return ariaLabel || labels?.[0]?.innerText || innerText || id;
    }"""

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(focused).startswith(name):
                shown = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
                assert shown != "none", name
                return
        pytest.fail(f"no way to {name!r} with the tabulator key")

    tab_to("Skip the map")
    tab_to("Follow")
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Follow").get_attribute("aria-pressed") == "true"
    tab_to("Map.")
    centre = page.evaluate("() => localizeMap.map.getCenter().lng")
    page.keyboard.press("ArrowRight")
    wait(page, "before => localizeMap.map.getCenter().lng > before", centre)
    tab_to("Zoom in")
    tab_to("Pause")
    page.keyboard.press("Space")
    wait(page, "() => localizeMap.view().paused")
    tab_to("One fix back")
    page.keyboard.press("Enter")
    wait_for_fix(page, 8)
    tab_to("Fix that is shown")
    page.keyboard.press("ArrowLeft")
    wait_for_fix(page, 7)
    page.keyboard.press("End")
    wait_for_fix(page, 9)
    tab_to("Show demo, 433.92 MHz")
    page.keyboard.press("Space")
    wait(page, "() => localizeMap.view().emitters.length === 0")
    tab_to("433.92 MHz")
    tab_to("Receivers and area")
    tab_to("Trail")
    tab_to("Copy the position")
    tab_to("Table of the latest fixes")


def test_it_can_be_read_aloud(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    page = pages.open(desktop, serve(service).url)
    service.publish(fix_at(1, -45.1, 7.5))
    wait_for_fix(page, 1)
    for role, name in (
        ("heading", "gr-localize"),
        ("group", "View"),
        ("region", "Time"),
        ("complementary", "Stations and fixes"),
        ("heading", "Stations"),
        ("heading", "Latest fixes"),
        ("columnheader", "Latitude, longitude"),
        ("slider", "Fix that is shown"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    assert page.get_by_role("banner").count() == page.get_by_role("main").count() == 1
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a[href]")]
            .filter((each) => each.checkVisibility())
            .filter(({ ariaLabel, innerText, labels }) => !(ariaLabel || innerText || labels?.length))
            .map(({ outerHTML }) => outerHTML)"""
    )
    assert nameless == []
    announcer = page.locator("#announcer")
    assert announcer.get_attribute("aria-live") == "polite"
    said = "demo 433.92 MHz: 45.1000 degrees south, 7.5000 degrees east, within 110 m by 93.0 m at 95 %"
    page.get_by_text(said).wait_for(state="attached")
    service.publish(fix_at(2, -45.2, 7.5))
    wait_for_fix(page, 2)
    page.wait_for_function("() => document.querySelector('#fixes').innerText.includes('-45.20000')")
    assert announcer.inner_text() == said  # the next one is ten seconds away


def test_follow_and_a_link_to_the_view(pages, desktop, serve, fix_at) -> None:
    service = Service(stations=(DEMO,))
    service.publish(fix_at(1))
    server = serve(service)
    page = pages.open(desktop, f"{server.url}#map=14/45.1/7.5")
    wait_for_fix(page, 1)
    away_m = "place => localizeMap.map.getCenter().distanceTo(place)"
    assert page.evaluate("() => localizeMap.map.getZoom()") == 14
    assert page.evaluate(away_m, [45.1, 7.5]) < 20.0
    page.get_by_role("button", name="Follow").click()
    service.publish(fix_at(2, 45.2, 7.7))
    wait(page, "() => localizeMap.map.getCenter().distanceTo([45.2, 7.7]) < 50")
    page.wait_for_url(re.compile(r"#map=14/45\.2\d*/7\.7\d*$|#map=14/45\.19\d*/7\.69\d*$"))
    link = page.url
    page.get_by_role("button", name="Fit").click()
    assert page.get_by_role("button", name="Follow").get_attribute("aria-pressed") == "false"
    wait(page, "() => localizeMap.map.getZoom() < 14")
    again = pages.open(desktop, link)
    wait_for_fix(again, 2)
    assert again.evaluate(away_m, [45.2, 7.7]) < 50.0


def test_tiles_lie_below_when_the_operator_names_some(pages, desktop, serve, fix_at) -> None:
    server = serve(Service(stations=(DEMO,)), tiles="/tiles/{z}/{x}/{y}.png", attribution="made here")
    page = pages.open(desktop, server.url, before=without_tiles)
    page.locator("img.leaflet-tile").first.wait_for()
    page.get_by_text("made here").wait_for()
    assert page.locator(".leaflet-graticule-pane canvas").count() == 0
