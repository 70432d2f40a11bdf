"""The page as its users meet it, in Chromium. Run with `pytest -m browser`; needs chromium, gradio and playwright."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from talk_parts import vocoder

from speechzoo.models import LLaMAOmni
from speechzoo.talk.desk import Desk, Lobby
from speechzoo.talk.sources import Talker

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
WAIT = 30_000  # milliseconds
MESSAGE = ":is([data-testid=user], [data-testid=bot])"


@pytest.fixture(scope="module")
def address(omni: LLaMAOmni) -> Iterator[str]:
    """Two models on a page that is served on this machine."""
    pytest.importorskip("gradio")
    import uvicorn

    from speechzoo.talk.page import web_app

    sound = {"vocoder": vocoder(), "chunk_units": 4}
    lobby = Lobby({name: Desk(Talker(name, omni, sound)) for name in ("one", "other")}, max_new_tokens=24)
    server = uvicorn.Server(uvicorn.Config(web_app(lobby), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser(wavs: list[Path]):
    """Chromium whose microphone hears the first of the clips, again and again."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    microphone.append(f"--use-file-for-fake-audio-capture={wavs[0]}")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # the sandbox does not run as root
    autoplay = ["--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *microphone, *sandbox, *autoplay], headless=True
        )
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, address: str):
    """A user's own tab, whose mistakes in the console fail the test."""
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    page.set_default_timeout(WAIT)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.locator("#ask").wait_for()
    yield page
    context.close()
    assert not wrong


def ask(page, words: str) -> None:
    page.locator("#text textarea").fill(words)
    page.locator("#ask").click()


def finished(page, number: int = 0, times: str = "tokens") -> str:
    """The line below an answer that is over."""
    line = page.locator(f"#latency-{number}")
    line.get_by_text(times).wait_for()
    return line.inner_text()


def said(page, number: int = 0) -> list[str]:
    return page.locator(f"#chat-{number} {MESSAGE}").all_inner_texts()


def until_said(page, number_of: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#chat-0 {MESSAGE}').length == {number_of}")


def heard_again(page) -> str:
    """Plays the first clip of the conversation; its length as it is shown."""
    clip = page.locator("#chat-0 .minimal-audio-player")
    play = clip.get_by_label("Play")
    play.click()
    clip.get_by_label("Pause").wait_for()
    play.wait_for()  # it has come to its end
    assert clip.bounding_box()["height"] < 100
    return clip.inner_text().strip()


def test_a_written_question_is_answered_in_words_and_sound(tab) -> None:
    ask(tab, "What is the capital of France?")
    line = finished(tab)
    assert "first text" in line and "first audio" in line and "s of sound" in line
    question, answer = said(tab)
    assert question == "What is the capital of France?" and len(answer) > 5
    tab.wait_for_function("document.querySelector('#sound-0 audio').duration > 0")
    assert tab.locator("#text textarea").input_value() == ""

    ask(tab, "And of Peru?")
    until_said(tab, 4)
    finished(tab)
    assert said(tab)[0] == question and said(tab)[2] == "And of Peru?"  # the first turn is remembered

    tab.locator("#chat-0 button[aria-label=Clear]").click()  # the bin; it forgets what it hides
    until_said(tab, 0)
    ask(tab, "And of Chile?")
    until_said(tab, 2)
    finished(tab)
    tab.locator("#clear").click()
    until_said(tab, 0)


def test_an_uploaded_and_a_spoken_question(tab, wavs: list[Path]) -> None:
    assert tab.locator("#upload").is_visible()
    with tab.expect_file_chooser() as chooser:
        tab.locator("#upload").click()
    chooser.value.set_files(str(wavs[1]))  # 2.3 s at 22.05 kHz
    tab.locator("button[aria-label=Play]").wait_for()
    tab.locator("#ask").click()
    finished(tab)
    assert heard_again(tab) == "0:02"
    tab.locator("#clear").click()
    until_said(tab, 0)

    tab.locator("button.record-button").click()
    tab.wait_for_timeout(1500)
    tab.locator("button.stop-button").click()
    tab.locator("button[aria-label=Play]").wait_for()
    tab.locator("#ask").click()
    finished(tab)
    assert heard_again(tab) in ("0:00", "0:01", "0:02", "0:03")
    ask(tab, "and in words?")  # the clip stays where it is
    until_said(tab, 4)
    finished(tab)
    assert heard_again(tab) and said(tab)[2] == "and in words?"


def test_two_models_and_two_users_keep_their_answers_apart(tab, browser, address: str) -> None:
    context = browser.new_context()
    second = context.new_page()
    second.goto(address)
    tab.get_by_label("other", exact=True).check()
    tab.locator("#chat-1").wait_for()
    ask(tab, "mine")
    ask(second, "theirs")
    for page, words, numbers in ((tab, "mine", (0, 1)), (second, "theirs", (0,))):
        for number in numbers:
            finished(page, number)
            assert said(page, number)[0] == words and len(said(page, number)) == 2
    assert said(tab, 0) == said(tab, 1)  # both names stand for one model
    context.close()


def test_a_mistake_is_said_in_a_line_and_the_page_goes_on(tab, tmp_path: Path) -> None:
    hint = tab.locator("#hint")
    assert not hint.is_visible()
    tab.locator("#ask").click()  # nothing was asked
    hint.get_by_text("the question is empty: speak or write something").wait_for()
    assert not tab.locator(".toast-body").count() and not tab.get_by_text("Error", exact=True).count()
    soundfile.write(tmp_path / "quiet<b>.wav", np.zeros(16_000), 16_000)
    with tab.expect_file_chooser() as chooser:
        tab.locator("#upload").click()
    chooser.value.set_files(str(tmp_path / "quiet<b>.wav"))
    tab.locator("button[aria-label=Play]").wait_for()
    assert not hint.is_visible()
    tab.locator("#ask").click()
    hint.get_by_text("only silence").wait_for()
    assert str(tmp_path) not in hint.inner_text() and "/" not in hint.inner_text()
    tab.locator("button[aria-label=Clear]").first.click()
    ask(tab, "still there?")
    assert "tokens" in finished(tab)
    assert not hint.is_visible()
    assert said(tab)[0] == "still there?"
