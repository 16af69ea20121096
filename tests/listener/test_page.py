from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from tests.telemetry.snapshots import snapshot
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.listener.endpoints import Pages
from trio_odin.listener.page import Page
from trio_odin.net.http import Request, Response, response_bytes

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "js"
CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PACKED_BYTES_MAX = 40_000


async def gathered() -> Snapshot:
    return snapshot()


@pytest.fixture
def pages() -> Pages:
    return Pages(gathered, page=Page())


def request(path: str, *, method: str = "GET", **headers: str) -> Request:
    lines = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return Request(method, path, lines)


async def html_of(pages: Pages) -> str:
    return (await pages.respond(request("/", accept=CHROMIUM))).body.decode()


async def assets_of(pages: Pages) -> list[str]:
    paths = re.findall(r'(?:href|src)="(page/[^"]+)"', await html_of(pages))
    assert len(paths) == 3
    return [f"/{path}" for path in paths]


def header(response: Response, name: str) -> str | None:
    return dict(response.headers).get(name)


@pytest.mark.parametrize(
    "accept", [CHROMIUM, FIREFOX, "text/html", "text/plain, TEXT/HTML ; q=0.5"]
)
async def test_a_browser_gets_the_page(pages: Pages, accept: str) -> None:
    response = await pages.respond(request("/", accept=accept))
    assert response.status == 200
    assert response.content_type == "text/html; charset=utf-8"
    assert response.body.startswith(b"<!doctype html>")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"accept": "*/*"},
        {"accept": "text/*"},
        {"accept": "application/json"},
        {"accept": "text/html;q=0"},
        {"accept": "text/html;q=many"},
        {"accept": "text/html-like, x/text/html"},
        {"accept_encoding": "text/html"},
    ],
)
async def test_other_programs_get_the_text(pages: Pages, headers: dict[str, str]) -> None:
    without = await Pages(gathered).respond(request("/"))
    response = await pages.respond(request("/", **headers))
    assert (response.status, response.body) == (200, without.body)
    assert response.content_type == without.content_type
    assert header(response, "Vary") == "Accept", "caches keep the page and the text apart"


async def test_the_page_may_load_nothing_from_elsewhere(pages: Pages) -> None:
    response = await pages.respond(request("/", accept=CHROMIUM))
    policy = dict(
        directive.split(" ", 1)
        for directive in (header(response, "Content-Security-Policy") or "").split("; ")
    )
    assert policy["default-src"] == "'none'"
    for directive in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[directive] == "'self'"
    for directive in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[directive] == "'none'"
    assert header(response, "X-Content-Type-Options") == "nosniff"
    assert header(response, "Referrer-Policy") == "no-referrer"
    assert header(response, "Cache-Control") == "no-cache"
    html = response.body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", html), "nothing inline"
    assert not re.search(r'(?:href|src|action)="(?:/|\w+:)', html), (
        "relative: a proxy may add a path"
    )


async def test_the_files_of_the_page_are_kept_for_ever_by_caches(pages: Pages) -> None:
    types = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
    for path in await assets_of(pages):
        response = await pages.respond(request(path))
        assert response.status == 200
        assert re.fullmatch(r"/page/[0-9a-f]{16}/\w+\.\w+", path), "the digest of the content"
        assert header(response, "Cache-Control") == "public, max-age=31536000, immutable"
        assert header(response, "X-Content-Type-Options") == "nosniff"
        assert header(response, "Vary") == "Accept-Encoding"
        assert header(response, "Content-Encoding") is None
        assert response.content_type == types.get(Path(path).suffix, "image/svg+xml")
        wrong = re.sub("[0-9a-f]{16}", "0" * 16, path)
        assert (await pages.respond(request(wrong))).status == 404


@pytest.mark.parametrize("accepted", ["gzip", "gzip, deflate, br, zstd", "br;q=1.0, GZIP;q=0.8"])
async def test_whoever_takes_gzip_gets_fewer_bytes(pages: Pages, accepted: str) -> None:
    sizes = []
    for path in await assets_of(pages):
        plain = await pages.respond(request(path))
        packed = await pages.respond(request(path, accept_encoding=accepted))
        assert header(packed, "Content-Encoding") == "gzip"
        assert gzip.decompress(packed.body) == plain.body
        sizes.append(len(packed.body))
    assert sum(sizes) + len(await html_of(pages)) <= PACKED_BYTES_MAX


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "identity"])
async def test_whoever_takes_no_gzip_gets_it_plain(pages: Pages, accepted: str) -> None:
    for path in await assets_of(pages):
        response = await pages.respond(request(path, accept_encoding=accepted))
        assert header(response, "Content-Encoding") is None


async def test_head_has_the_headers_of_get_and_no_body(pages: Pages) -> None:
    for path in ("/", *await assets_of(pages)):
        head = request(path, method="HEAD", accept=CHROMIUM, accept_encoding="gzip")
        response = await pages.respond(head)
        whole = await pages.respond(request(path, accept=CHROMIUM, accept_encoding="gzip"))
        assert response == whole
        sent = response_bytes(response, method="HEAD")
        assert sent.endswith(b"\r\n\r\n")
        assert f"Content-Length: {len(whole.body)}".encode() in sent


async def test_without_the_page_everybody_gets_the_text(pages: Pages) -> None:
    without = Pages(gathered)
    response = await without.respond(request("/", accept=CHROMIUM))
    assert response.content_type.startswith("text/plain")
    assert header(response, "Vary") is None
    for path in await assets_of(pages):
        assert (await without.respond(request(path))).status == 404


async def test_the_page_is_read_only_and_not_at_the_admin_address(pages: Pages) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await pages.respond(request("/", method=method, accept=CHROMIUM))).status == 405
    assert (await pages.respond_to_admin(request("/", accept=CHROMIUM))).status == 404


def test_the_page_brings_the_license_of_what_it_contains() -> None:
    packed = files("trio_odin.listener").joinpath("assets", "page.js.gz").read_bytes()
    script = gzip.decompress(packed).decode()
    for words in ("fflate", "Copyright (c)", "Permission is hereby granted"):
        assert words in script


def test_the_wheel_and_the_sdist_have_the_page(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("needs the source tree")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    served = {"index.html", "page.js.gz", "page.css.gz", "icon.svg.gz"}
    folder = "trio_odin/listener/assets/"
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if folder in name} == {
            folder + name for name in served
        }
    with tarfile.open(sdist) as unpacked:
        names = {name.partition("/")[2] for name in unpacked.getnames()}
    assert {folder + name for name in served} | {"clients/js/page/main.ts"} <= names
    assert not any("node_modules" in name for name in names)


def test_the_page_in_the_package_is_what_its_source_makes() -> None:
    """Run `npm ci && npm run build:page` in clients/js after a change there."""
    node = shutil.which("node")
    if node is None or not (CLIENT / "node_modules" / "esbuild").is_dir():
        pytest.skip("needs node, and `npm ci` in clients/js")
    command = [node, "page/build.mjs", "--check"]
    checked = subprocess.run(
        command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
