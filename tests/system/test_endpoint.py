"""The client of OpenAI-compatible endpoints: what is sent, what is tried again, and what an error says."""

from __future__ import annotations

import time

import pytest
from api_stand_in import endpoint

from speechzoo.system.endpoint import Endpoint, EndpointError


def test_a_chat_sends_model_messages_and_key_and_reads_text_and_tokens(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with endpoint(lambda prompt: f"you said {prompt}") as server:
        reply = Endpoint(server.url + "/", "m", key_env="MY_KEY").chat(
            [{"role": "user", "content": "hé"}], temperature=0
        )
    ((path, body, headers),) = server.requests
    assert path == "/v1/chat/completions"
    assert body == {"model": "m", "messages": [{"role": "user", "content": "hé"}], "temperature": 0}
    assert headers["Authorization"] == "Bearer secret"
    assert (reply.text, reply.ended, reply.prompt_tokens, reply.completion_tokens) == ("you said hé", "stop", 100, 10)


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with endpoint() as server:
        Endpoint(server.url, "m").chat(HELLO)
    assert "Authorization" not in server.requests[0][2]


HELLO = [{"role": "user", "content": "hello"}]
GARBAGE = (200, b"<html>busy</html>", {"Content-Type": "text/html"})


@pytest.mark.parametrize(
    "fault",
    [(429, b"slow down", {}), (500, b"", {}), (503, b"", {}), GARBAGE, (200, b'{"choices": []}', {})],
    ids=["429", "500", "503", "html", "no choice"],
)
def test_what_may_pass_is_tried_again(fault):
    with endpoint() as server:
        server.faults = [fault, fault]
        assert Endpoint(server.url, "m", wait=0.01).chat(HELLO).text == "Fine."
        assert len(server.requests) == 3


def test_attempts_are_bounded_and_the_last_error_is_told():
    with endpoint() as server:
        server.faults = [(500, b"out of\nmemory", {})] * 9
        with pytest.raises(EndpointError, match=r"status 500 \(out of memory\), 3 times") as error:
            Endpoint(server.url, "m", retries=2, wait=0.01).chat(HELLO)
        assert error.value.transient
        assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "transient"), [(400, True), (401, False), (404, False)])
def test_what_will_not_pass_is_not_tried_again(status, transient):
    with endpoint() as server:
        server.faults = [(status, b"no", {})]
        with pytest.raises(EndpointError, match=f"status {status}") as error:
            Endpoint(server.url, "m").chat(HELLO)
        assert error.value.transient is transient
        assert len(server.requests) == 1


def test_retry_after_is_obeyed_up_to_the_longest_wait():
    with endpoint() as server:
        server.faults = [(429, b"", {"Retry-After": "3600"})]
        start = time.monotonic()
        Endpoint(server.url, "m", wait=0.01, longest=0.3).chat(HELLO)
        assert 0.3 <= time.monotonic() - start < 3


def test_nobody_there_is_an_error_after_the_last_attempt():
    with endpoint() as server:
        url = server.url
    with pytest.raises(EndpointError, match="2 times") as error:
        Endpoint(url, "m", retries=1, wait=0.01).chat(HELLO)
    assert error.value.transient


def test_speech_is_bytes_and_a_text_in_their_place_is_none():
    with endpoint() as server:
        server.faults = [(200, b'{"error": "voice"}', {"Content-Type": "application/json"})]
        sound = Endpoint(server.url, "m", wait=0.01).speech("Hello.", "alloy")
        assert sound.startswith(b"RIFF")
    assert server.requests[1][1] == {"model": "m", "input": "Hello.", "voice": "alloy", "response_format": "wav"}


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="localhost:8000"):
        Endpoint("localhost:8000/v1", "m")
