"""The page of the playground in a real Chromium: every tab, no failure, nothing asked of others."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from PIL import Image

from spectok.testing.small import small_tokenizer
from spectok_generation import create_prior
from spectok_generation.records import tokenizer_record

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 120  # seconds
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Save a prior with random weights beside its tokenizer, as a run does."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    tokenizer = small_tokenizer("rqvae", token_order="level").eval()
    sizes = {"num_layers": 1, "num_heads": 2, "width": 16, "num_classes": 3}
    record = tokenizer_record(tokenizer)
    prior = create_prior(
        "gpt", tokenizer.token_spec, tokenizer=record, condition_dropout=0.1, **sizes
    )
    tokenizer.save_pretrained(folder / "tokenizer" / "model")
    prior.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def address(run):
    """Run ``spectok ui`` on the prior and on an installed tokenizer."""
    pytest.importorskip("gradio", reason="needs the extra ui")
    port = str(free_port())
    where = f"http://127.0.0.1:{port}/"
    words = ["ui", str(run), "vqvae/mnist", "--no-browser", "--port", port]
    server = subprocess.Popen(
        [sys.executable, "-m", "spectok", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        for _ in range(PATIENCE):
            try:
                urllib.request.urlopen(where, timeout=5)
                break
            except urllib.error.URLError:
                assert server.poll() is None, "the server has ended"
                time.sleep(1)
        yield where
    finally:
        server.terminate()
        server.wait(30)


def ask(address, path, content=None, **headers):
    """Return the status and the text of an answer of the server."""
    data = None if content is None else json.dumps(content).encode()
    headers |= {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_answers_to_its_own_name_alone_and_offers_no_endpoints(address):
    assert ask(address, "")[0] == 200
    assert ask(address, "", Host="example.com")[0] == 400
    status, text = ask(address, "gradio_api/info")
    assert status == 200
    assert json.loads(text)["named_endpoints"] == {}


def test_the_server_fetches_no_address(address):
    """As an upload, whoever calls the page's own functions may give an address."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(3)
        url = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
        file = {"path": url, "meta": {"_type": "gradio.FileData"}}
        config = json.loads(ask(address, "config")[1])
        uploads = [d for d in config["dependencies"] if d["targets"][0][1] == "upload"]
        for number in {d["id"] for d in uploads}:
            call = {"data": [None, [file]], "fn_index": number, "session_hash": "x"}
            ask(address, "gradio_api/queue/join?", call)
            with urllib.request.urlopen(
                f"{address}gradio_api/queue/data?session_hash=x", timeout=PATIENCE
            ) as answers:
                for line in answers:
                    if b"process_completed" in line:
                        assert b"upload a file" in line
                        asked.append(line)
                        break
        with pytest.raises(TimeoutError):
            other.accept()
    assert asked


@pytest.fixture
def page(address):
    """Open the page; at the end, no script may have failed and nobody else been asked."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs Chromium")
    asked, failed = [], []
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address, wait_until="domcontentloaded")
        page.locator("#reconstruction img").wait_for()
        yield page
        browser.close()
    local = re.compile(rf"{re.escape(address)}|data:|blob:")
    assert [url for url in asked if not local.match(url)] == []
    assert failed == []


def go_to(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def test_every_tab_shows_something(page):
    assert "PSNR" in page.locator("#quality").inner_text()
    go_to(page, "Tokens")
    assert page.locator("#tables td").count() == 16 * 4
    go_to(page, "First tokens")
    page.locator("#strip img").nth(3).wait_for()
    page.locator("#step input[type=number]").fill("1")
    page.keyboard.press("Tab")
    page.get_by_text("The first 16 of 64 tokens.").wait_for()
    go_to(page, "Influence")
    page.locator("#go-influence").click()
    page.locator("#influences img").nth(15).wait_for()
    go_to(page, "Swap")
    before = page.locator("#mixed img").get_attribute("src")
    page.locator("#others button img").nth(5).click()
    page.wait_for_function(f"document.querySelector('#mixed img')?.src != {before!r}")
    go_to(page, "Codebook")
    page.locator("#go-codebook").click()
    page.locator("#codes img").nth(31).wait_for()
    go_to(page, "Samples")
    page.locator("#go-samples").click()
    page.locator("#samples img").nth(7).wait_for()


def test_what_is_painted_is_drawn_anew(page):
    go_to(page, "Edit")
    page.locator("#go-edit").click()
    page.get_by_text("nothing is painted").wait_for()
    page.locator("#editor canvas").first.wait_for()
    page.wait_for_timeout(2000)  # the canvas draws its picture after it is there
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=8)
    page.mouse.up()
    page.locator("#go-edit").click()
    page.locator("#variants img").nth(3).wait_for()
    drawn = re.search(r"(\d+) of 64 tokens", page.locator("#edit-words").inner_text())
    assert drawn is not None
    assert 0 < int(drawn[1]) < 64


def test_another_model_and_uploads(page, tmp_path):
    Image.new("RGB", (30, 40), "red").save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no image")
    page.locator("input[type=file]").set_input_files(tmp_path / "text.png")
    page.get_by_text("text.png is no image that can be read").wait_for()
    page.locator("input[type=file]").set_input_files(tmp_path / "red.png")
    page.locator("#pictures img").nth(12).wait_for()
    page.locator("#model input").click()
    page.get_by_role("option", name="vqvae/mnist").click()
    page.get_by_text("VQVAE: 28×28 grey").wait_for()
    page.locator("#pictures img").nth(12).wait_for()
    go_to(page, "Samples")
    page.get_by_text("takes a prior of its tokens").wait_for()
    go_to(page, "First tokens")
    page.get_by_text("decodes all of its tokens or none").wait_for()
