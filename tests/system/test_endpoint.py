"""An OpenAI-compatible endpoint that is busy, broken, gone, or says something else."""

from __future__ import annotations

import time

import pytest
from api_stand_in import chat_server, endpoint

from speechzoo.system.endpoint import Chat, Endpoint, ReplyError, UnreachableError, api_key

ASKED = [{"role": "user", "content": "hello"}]


def quick(url: str, **more) -> Endpoint:
    return Endpoint(url, "m", first_wait=0.001, tries=3, **more)


def test_the_request_and_the_key_arrive():
    with chat_server(lambda request, n: "hi") as seen:
        assert quick(seen.url, key="secret").chat(ASKED, temperature=0, seed=7).text == "hi"
    assert seen.requests == [{"model": "m", "messages": ASKED, "temperature": 0, "seed": 7}]
    assert seen.keys == ["Bearer secret"]
    assert "secret" not in repr(quick("http://x/v1", key="secret"))


def test_a_key_with_the_end_of_its_line_is_sent_and_a_broken_one_is_not_shown():
    with chat_server(lambda request, n: "hi") as seen:
        assert quick(seen.url, key="secret\r\n").chat(ASKED).text == "hi"
    assert seen.keys == ["Bearer secret"]
    for key in ("secret\nagain", "secr\u00e9t"):
        with pytest.raises(ValueError, match="holds characters that no key has") as error:
            quick("http://x/v1", key=key)
        assert "secr" not in str(error.value)


@pytest.mark.parametrize("trouble", [(429, "slow down", {}), (500, "oops", {}), (503, "", {}), None])
def test_trouble_that_passes_is_waited_for(trouble):
    with chat_server(lambda request, n: trouble if n < 2 else "at last") as seen:
        assert quick(seen.url).chat(ASKED).text == "at last"
    assert len(seen.requests) == 3


def test_the_server_says_how_long_to_wait():
    with chat_server(lambda request, n: "ok" if n else (429, "", {"Retry-After": "1"})) as seen:
        start = time.monotonic()
        quick(seen.url).chat(ASKED)
    assert time.monotonic() - start >= 1


def test_trouble_that_stays_ends():
    with chat_server(lambda request, n: (500, "oops", {})) as seen:
        with pytest.raises(UnreachableError, match="status 500 for model m: oops, 3 times"):
            quick(seen.url).chat(ASKED)
    assert len(seen.requests) == 3
    with pytest.raises(UnreachableError, match="ConnectError"):  # nobody listens there any more
        quick(seen.url).chat(ASKED)


def test_a_slow_server_is_left():
    with chat_server(lambda request, n: time.sleep(0.3)) as seen:
        with pytest.raises(UnreachableError, match="Timeout"):
            quick(seen.url, timeout=0.05).chat(ASKED)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_told_at_once(status: int):
    with chat_server(lambda request, n: (status, "who are you?", {})) as seen:
        with pytest.raises(UnreachableError, match=f"status {status} for model m: who are you") as error:
            quick(seen.url).chat(ASKED)
        assert not error.value.transient
    assert len(seen.requests) == 1


@pytest.mark.parametrize("body", ["<html>", "{}", '{"choices": []}', '{"choices": [{"message": "text"}]}', ""])
def test_what_is_no_completion_is_told(body: str):
    with chat_server(lambda request, n: (200, body, {})) as seen:
        with pytest.raises(ReplyError, match="not a chat completion.* 3 times"):
            quick(seen.url).chat(ASKED)
    assert len(seen.requests) == 3


def test_one_bad_request_is_no_end_of_all():
    with chat_server(lambda request, n: (400, "too long", {})) as seen:
        with pytest.raises(ReplyError, match="status 400"):
            quick(seen.url).chat(ASKED)


def test_text_is_content_parts_or_transcript():
    assert Chat({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}).text == "ab"
    assert Chat({"content": None, "audio": {"transcript": "said"}}).text == "said"
    assert Chat({"content": ""}).text == ""
    with pytest.raises(ReplyError):
        _ = Chat({"content": None}).text


def test_tokens_and_the_end_are_told():
    with endpoint(lambda prompt: f"you said {prompt}") as server:
        reply = quick(server.url + "/").chat([{"role": "user", "content": "hé"}])
    assert server.requests[0][0] == "/v1/chat/completions" and "Authorization" not in server.requests[0][2]
    assert (reply.text, reply.ended, reply.prompt_tokens, reply.completion_tokens) == ("you said hé", "stop", 100, 10)


def test_retry_after_is_obeyed_up_to_the_longest_wait():
    with endpoint() as server:
        server.faults = [(429, b"", {"Retry-After": "3600"})]
        start = time.monotonic()
        quick(server.url, longest=0.3).chat(ASKED)
        assert 0.3 <= time.monotonic() - start < 5


def test_speech_is_bytes_and_a_text_in_their_place_is_none():
    with endpoint() as server:
        server.faults = [(200, b'{"error": "voice"}', {"Content-Type": "application/json"})]
        assert quick(server.url).speech("Hello.", "alloy").startswith(b"RIFF")
    assert server.requests[1][0] == "/v1/audio/speech"
    assert server.requests[1][1] == {"model": "m", "input": "Hello.", "voice": "alloy", "response_format": "wav"}


def test_only_openai_is_given_its_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert api_key("https://api.openai.com/v1", "OWN_KEY") == "theirs"
    assert api_key("https://api.openai.com.evil.org/v1", "OWN_KEY") is None
    monkeypatch.setenv("OWN_KEY", "own")
    assert api_key("https://evil.org/v1", "OWN_KEY") == "own"


def test_an_address_is_http():
    with pytest.raises(ValueError, match="not the address"):
        Endpoint("localhost:8000", "m")
