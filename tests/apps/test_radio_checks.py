from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from localize_apps import doctor, radio_checks
from localize_apps.finding import Finding
from localize_apps.radio_checks import RadioFacts, check_drivers, check_radios, check_station_radios, gather_radio_facts
from localize_core.station.config import Station, parse_station
from localize_core.station.drivers import INSTALL, MODULES, uhd_images_install

GOOD = RadioFacts(dict.fromkeys(MODULES.values()), ("remote", "rtlsdr"), "/usr/share/uhd/images")
MISSING = "No module named 'osmosdr'"


def station(*sources: str) -> Station:
    text = '[station]\nname = "s"\nsample_rate_hz = 2e6\nfrequency_hz = 100e6\n'
    for index, source in enumerate(sources):
        text += f'[[receiver]]\nname = "r{index}"\nlatitude = 47.0\nlongitude = 8.0\nsource = {source}\n'
    text += "[area]\nsouth = 46.99\nwest = 7.99\nnorth = 47.02\neast = 8.02\n"
    return parse_station(text, folder=Path("/somewhere"))


def test_every_kind_is_listed_with_what_installs_it() -> None:
    found = {finding.check: finding for finding in check_drivers(GOOD)}
    assert list(found) == [f"driver {kind}" for kind in MODULES]
    assert all(finding.level == "ok" and finding.fix is None for finding in found.values())
    assert found["driver soapy"].message == "SoapySDR with remote, rtlsdr"
    bare = RadioFacts(dict.fromkeys(MODULES.values(), "no such module"), None, None)
    for kind, finding in zip(MODULES, check_drivers(bare), strict=True):
        assert finding.level == "ok"  # nobody needs them all
        assert finding.message == "not installed (no such module); only needed for receivers of this kind"
        assert finding.fix == INSTALL[MODULES[kind]]
    half = {finding.check: finding for finding in check_drivers(dataclasses.replace(GOOD, soapy=(), uhd_images=None))}
    assert half["driver soapy"].message == "SoapySDR with no driver"
    assert half["driver uhd"].fix == uhd_images_install()


SOAPY = '{ kind = "soapy", args = "driver=lime" }'
UHD = '{ kind = "uhd", args = "serial=1" }'
RTL_TCP = '{ kind = "rtl-tcp", address = "127.0.0.1:1234" }'


@pytest.mark.parametrize(
    ("source", "facts", "wanted"),
    [
        (RTL_TCP, GOOD, Finding("radios", "ok", "drivers for rtl-tcp 127.0.0.1:1234")),
        (
            RTL_TCP,
            dataclasses.replace(GOOD, modules={**GOOD.modules, "osmosdr": MISSING}),
            Finding("radios", "error", f"osmosdr does not load: {MISSING}", INSTALL["osmosdr"]),
        ),
        (
            SOAPY,
            GOOD,
            Finding(
                "radios",
                "error",
                "SoapySDR has no driver lime, only remote, rtlsdr",
                "apt-get install soapysdr-module-lms7, or conda install -c conda-forge soapysdr-module-lms7",
            ),
        ),
        (SOAPY.replace("lime", "rtlsdr"), GOOD, Finding("radios", "ok", "drivers for soapy driver=rtlsdr")),
        (SOAPY, dataclasses.replace(GOOD, soapy=None), Finding("radios", "ok", "drivers for soapy driver=lime")),
        (
            SOAPY,
            dataclasses.replace(GOOD, modules={**GOOD.modules, "gnuradio.soapy": "x"}, soapy=()),
            Finding("radios", "error", "gnuradio.soapy does not load: x", INSTALL["gnuradio.soapy"]),
        ),
        (UHD, GOOD, Finding("radios", "ok", "drivers for uhd serial=1")),
        (
            UHD,
            dataclasses.replace(GOOD, uhd_images=None),
            Finding("radios", "warning", "the firmware that USRPs load is not on this computer", uhd_images_install()),
        ),
    ],
)
def test_what_a_station_needs(source, facts, wanted) -> None:
    assert list(check_radios(station(source), facts)) == [wanted]


def test_what_stations_do_not_need() -> None:
    bare = RadioFacts(dict.fromkeys(MODULES.values(), "missing"), (), None)
    assert list(check_radios(station('{ kind = "sigmf", path = "a.sigmf-meta" }'), bare)) == []
    assert list(check_station_radios(Path("/no/such/station.toml"), None, bare)) == []  # said elsewhere


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_gnuradio_s_modules_are_loaded() -> None:
    modules = gather_radio_facts().modules
    assert set(modules) == set(MODULES.values())
    assert modules["gnuradio.zeromq"] is None  # it comes with GNU Radio


def test_the_tools_of_drivers_are_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(radio_checks, "PROBE", "print('{}')")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (gather_radio_facts().soapy, gather_radio_facts().uhd_images) == (None, None)
    tool(tmp_path, "SoapySDRUtil", 'echo "Search path"; echo "Available factories... airspy, rtlsdr"')
    images = tmp_path / "images"
    tool(tmp_path, "uhd_config_info", f'echo "Images directory: {images}"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    facts = gather_radio_facts()
    assert (facts.soapy, facts.uhd_images) == (("airspy", "rtlsdr"), None)
    images.mkdir()
    assert gather_radio_facts().uhd_images is None
    (images / "usrp_b200_fw.hex").touch()
    assert gather_radio_facts().uhd_images == str(images)
    tool(tmp_path, "SoapySDRUtil", 'echo "Available factories... No factories found!"')
    assert gather_radio_facts().soapy == ()
    tool(tmp_path, "SoapySDRUtil", "exit 1")
    assert gather_radio_facts().soapy is None


def test_drivers_that_crash_are_named(monkeypatch) -> None:
    monkeypatch.setattr(radio_checks, "PROBE", "import os; os.abort()")
    assert set(gather_radio_facts().modules.values()) == {"Python ended with status -6 when drivers were loaded"}


def test_doctor_names_them(tmp_path, monkeypatch) -> None:
    bare = RadioFacts({**GOOD.modules, "osmosdr": MISSING}, ("remote",), None)
    monkeypatch.setattr(doctor, "gather_radio_facts", lambda: bare)
    path = tmp_path / "station.toml"
    path.write_text(
        '[station]\nname = "s"\nsample_rate_hz = 2e6\nfrequency_hz = 100e6\n'
        f'[[receiver]]\nname = "r"\nlatitude = 47.0\nlongitude = 8.0\nsource = {RTL_TCP}\n'
        "[area]\nsouth = 46.99\nwest = 7.99\nnorth = 47.02\neast = 8.02\n"
    )
    result = CliRunner().invoke(doctor.command, [str(path), "--json"], standalone_mode=False)
    assert result.return_value == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["check"] for line in lines} >= {f"driver {kind}" for kind in MODULES}
    (radios,) = (line for line in lines if line["check"] == "radios")
    assert radios["fix"].startswith("apt-get install gr-osmosdr, or conda install -c conda-forge")
