"""The page in the browser."""

import json
import re
import shutil
import time
import urllib.request
from pathlib import Path

import pytest

from samba_asr.transcriber import Transcriber

pytest.importorskip("gradio", reason="needs the extra demo")
import gradio_client
from gradio_client.exceptions import AppError

import app


@pytest.fixture(scope="module")
def transcriber(tiny_checkpoint):
    return Transcriber.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def url(transcriber):
    demo = app.build_demo(transcriber)
    _, url, _ = app.launch(demo, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


@pytest.fixture(scope="module")
def client(url):
    return gradio_client.Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("Not audio, whatever its name says.\n" * 20)
    return path


def test_a_clip_gives_its_words(client, transcriber, clips):
    for path in (clips[0][0], clips[-1][0]):  # mp3, opus
        words, picture = client.predict(gradio_client.handle_file(path), api_name="/transcribe")
        transcript = transcriber.transcribe(path)
        assert words == transcript.text != ""
        assert re.findall(r"<text[^>]*font-weight[^>]*>([^<]*)</text>", picture) == words.split()
        assert f"{transcript.words[0].start:.2f} to {transcript.words[0].end:.2f} s" in picture


def test_a_text_file_gives_a_clear_message(client, text_file):
    with pytest.raises(AppError, match=r"^text\.wav is not audio"):
        client.predict(gradio_client.handle_file(text_file), api_name="/transcribe")


def test_nothing_gives_a_clear_message(client):
    with pytest.raises(AppError, match="upload a recording"):
        client.predict(None, api_name="/transcribe")


def test_the_page_works_on_after_an_error(client, transcriber, clips, text_file):
    with pytest.raises(AppError):
        client.predict(gradio_client.handle_file(text_file), api_name="/transcribe")
    words, _ = client.predict(gradio_client.handle_file(clips[0][0]), api_name="/transcribe")
    assert words == transcriber.transcribe(clips[0][0]).text


def test_names_are_favoured_where_joint_search_can(clips, tmp_path):
    path = next(path for path, text in clips if text.lower().startswith("simmer for a minute"))
    demo = app.build_demo(Transcriber.load("samba-tiny-en"))
    _, url, _ = app.launch(demo, prevent_thread_lock=True, quiet=True)
    try:
        client = gradio_client.Client(url, verbose=False, analytics_enabled=False)
        recording = gradio_client.handle_file(path)
        plain, favoured = (
            client.predict(recording, names, api_name="/transcribe")[0] for names in (" ", "Simmer:2, Nadezhda:2")
        )
        assert plain.split()[0] == "summer" and favoured.split()[0] == "simmer"
        file = tmp_path / "names7"
        file.write_text("simmer:2\n")
        cases = {
            "simmer:0": r"weight \(0\) of hotword 'simmer'",
            "a,,b": "'' is no hotword",
            str(file): "has the character",  # the page reads no file of its machine
        }
        for names, message in cases.items():
            with pytest.raises(AppError, match=message):
                client.predict(recording, names, api_name="/transcribe")
    finally:
        demo.close()


def test_the_page_loads_nothing_from_another_host(url):
    with urllib.request.urlopen(url) as response:
        policy, page = response.headers["Content-Security-Policy"], response.read().decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"([^\"]*)\"", page)
    assert loaded
    assert not [address for address in loaded if "//" in address]
    config = json.loads(urllib.request.urlopen(url + "config").read())
    assert config["analytics_enabled"] is False
    with urllib.request.urlopen(url + "theme.css") as response:
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", response.read().decode())


def test_the_page_names_the_model_and_offers_the_clips(url):
    config = urllib.request.urlopen(url + "config").read().decode()
    assert "tiny-random" in config
    assert "mister quilter is the" in config


def test_without_a_model_main_says_so(capsys):
    assert app.main(["--model", "nonsense"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("samba-asr: error: model ('nonsense')")


def test_a_taken_port_is_said(url, tiny_checkpoint, capsys):
    port = url.rstrip("/").rsplit(":", 1)[1]
    assert app.main(["--model", str(tiny_checkpoint), "--port", port]) == 2
    assert port in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "many"])
def test_a_port_that_cannot_be_is_said(port, capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(["--port", port])
    assert stop.value.code == 2
    assert "1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["nonsense.invalid", "192.0.2.1", ".", "a" * 70])
def test_a_host_that_is_not_this_machine_is_said(host, capsys):
    assert app.main(["--host", host]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"samba-asr: error: --host ({host!r})")
    assert "127.0.0.1" in line


def test_the_device_is_passed_on(tiny_checkpoint, capsys):
    assert app.main(["--model", str(tiny_checkpoint), "--device", "abacus"]) == 2
    assert "'abacus'" in capsys.readouterr().err


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium that logs every request."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in f"{switches} disable-component-update disable-sync window-size=1000,1100".split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def wait_for(look, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError("nothing came")


@pytest.mark.slow
def test_in_chromium_an_uploaded_clip_s_words_appear(browser, url, transcriber, clips, text_file, tmp_path):
    def find(selector):
        return browser.find_elements("css selector", selector)

    browser.get(url)
    wait_for(lambda: find("input[type=file]"))[0].send_keys(str(clips[0][0]))
    words = wait_for(lambda: find("#words textarea")[0].get_attribute("value"))
    assert words == transcriber.transcribe(clips[0][0]).text
    drawn = wait_for(lambda: find("#picture svg .word text"))
    assert [word.get_attribute("textContent") for word in drawn] == words.split()
    assert find("#picture svg image")[0].size["height"] > 50
    browser.save_screenshot(str(tmp_path / "words.png"))

    browser.get(url)
    wait_for(lambda: find("input[type=file]"))[0].send_keys(str(text_file))
    wait_for(lambda: [toast for toast in find(".toast-body") if "text.wav is not audio" in toast.text])

    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"}
    assert any(address.startswith(url) for address in asked)
    others = [address for address in asked if address.startswith(("http", "ws")) and not address.startswith(url)]
    assert not others


def test_examples_are_those_of_the_checkout(clips):
    assert [Path(path) for path in app._examples()] == [path for path, _ in clips]
