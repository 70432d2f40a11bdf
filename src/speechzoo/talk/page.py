"""The page: microphone, file and text in; answers of one or several models side by side, as they are being made."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response, StreamingResponse

from speechzoo.audio import SAMPLE_RATE
from speechzoo.generation.sampling import Decoding
from speechzoo.talk.desk import ANSWERING, DONE, FAILED, STOPPED, WAITING, Answer, Lobby, User
from speechzoo.talk.live import Sounds, growing_wav, wav_bytes
from speechzoo.talk.questions import question

TITLE = "speechzoo"
CSS = (
    ".sound audio {width: 100%} .latency {font-size: 0.9em; min-height: 2.4em} "
    "#hint {font-size: 0.9em} #hint:not(:has(p)) {display: none} "
    # gradio's player of a clip in a chat is as high as half of it, and would send the clip to Hugging Face.
    ".bubble-wrap .minimal-audio-player {height: 3em !important} "
    "button[aria-label=Share] {display: none !important}"
)


def web_app(lobby: Lobby) -> FastAPI:
    """The page and the sounds it plays, as a web application (see `build` for what it shows)."""
    sounds, app = Sounds(), FastAPI(title=TITLE)

    @app.get("/sound/{name}.wav")
    def sound(name: str) -> Response:
        answer = sounds.get(name)
        if answer is None:
            raise HTTPException(404, "no such sound; it may have been forgotten: ask again")
        if answer.over:
            return Response(wav_bytes(answer), media_type="audio/wav")
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(growing_wav(answer), media_type="audio/wav", headers=headers)

    mounted: FastAPI = gr.mount_gradio_app(app, build(lobby, sounds), path="/", css=CSS, ssr_mode=False)
    return mounted


def build(lobby: Lobby, sounds: Sounds) -> gr.Blocks:
    """The page's components and what they do. Conversations are kept by browser tab, and forgotten when it closes."""
    names = list(lobby.desks)
    own = getattr(lobby.desks[names[0]].talker.model, "generation", {}) if names else {}
    settings = Decoding.of(**Decoding.merged([], own, {k: v for k, v in lobby.generate.items() if k != "chunk_units"}))
    longest, omega_given = settings.max_new_tokens, lobby.generate.get("chunk_units", 40)
    heat_given = (settings.temperature or 1.0) if settings.do_sample else 0.0
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("## Talk to the models\nSpeak or write; answers come while they are being made.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                models = gr.CheckboxGroup(names, value=names[:1], label="Models", visible=len(names) > 1)
                asked_clip = gr.Audio(sources=["microphone"], type="filepath", label="Spoken question", buttons=[])
                # Its own button: as a second source of the recorder it would be a small sign behind it.
                upload = gr.UploadButton("Upload a sound", file_types=["audio"], size="sm", elem_id="upload")
                asked_text = gr.Textbox(label="Written question, or words with the sound", lines=2, elem_id="text")
                hint = gr.HTML(elem_id="hint")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                    clear = gr.Button("New conversation", elem_id="clear")
                with gr.Accordion("Settings", open=False):
                    # Gradio refuses all that lies outside a slider's ends.
                    tokens = gr.Slider(min(8, longest), max(512, longest), longest, step=8, label="Longest answer")
                    heat = gr.Slider(0, max(1.5, heat_given), heat_given, step=0.1, label="Temperature")
                    ends = min(10, omega_given), max(100, omega_given)
                    omega = gr.Slider(*ends, omega_given, step=10, label="Units a chunk (Ω)")
            columns, chats, players, figures = {}, {}, {}, {}
            with gr.Column(scale=4), gr.Row():
                for number, name in enumerate(names):
                    with gr.Column(min_width=240, visible=number == 0) as columns[name]:
                        chats[name] = gr.Chatbot(
                            label=name, height=420, elem_id=f"chat-{number}", render_markdown=False, buttons=[]
                        )
                        players[name] = gr.HTML(elem_classes="sound", elem_id=f"sound-{number}")
                        figures[name] = gr.Markdown(elem_classes="latency", elem_id=f"latency-{number}")
        shown = [*chats.values(), *players.values(), *figures.values()]

        def answer(
            chosen: list[str], clip: str | None, text: str, tokens: int, heat: float, omega: int, request: gr.Request
        ) -> Iterator[dict[Any, Any]]:
            user = lobby.user(request.session_hash or "")
            try:
                message = question(clip, text)
                options = {"max_new_tokens": int(tokens), "temperature": float(heat), "chunk_units": int(omega)}
                answers = user.ask([name for name in names if name in chosen], message, **options)
            except (ValueError, FileNotFoundError) as error:
                # A line by the button; gradio's own error would lie over the conversation.
                yield {hint: f"<p>{html.escape(_named(str(error), clip))}</p>"}
                return
            yield {asked_clip: None, asked_text: "", hint: ""}
            playing: set[str] = set()
            for _ in changes(user, answers):
                update: dict[Any, Any] = {}
                for name, one in answers.items():
                    update[chats[name]] = conversation(one)
                    update[figures[name]] = latency(one)
                    if name not in playing:
                        update[players[name]] = player(sounds.add(one), not playing) if one.chunks else ""
                        playing |= {name} if one.chunks else set()
                yield update

        def stop_answers(request: gr.Request) -> None:
            lobby.user(request.session_hash or "").stop()

        def forget(request: gr.Request) -> dict[Any, Any]:
            lobby.user(request.session_hash or "").clear()
            return {hint: "", **{part: [] if part in chats.values() else "" for part in shown}}

        def leave(request: gr.Request) -> None:
            lobby.leave(request.session_hash or "")

        inputs = [models, asked_clip, asked_text, tokens, heat, omega]
        outputs = [asked_clip, asked_text, hint, *shown]
        upload.upload(lambda file: (file, ""), upload, [asked_clip, hint], queue=False, show_progress="hidden")
        started = [ask.click, asked_text.submit]
        # The desks put questions in line themselves; gradio's queue would hold all users to one at a time.
        gr.on(started, answer, inputs, outputs, concurrency_limit=None, show_progress="hidden")
        stop.click(stop_answers, queue=False)
        # The bin above a conversation too: else the model would remember what the page no longer shows.
        gr.on([clear.click, *(chat.clear for chat in chats.values())], forget, None, [hint, *shown], queue=False)
        models.change(
            lambda chosen: [gr.update(visible=name in chosen) for name in names],
            models,
            list(columns.values()),
            queue=False,
        )
        page.unload(leave)
    built: gr.Blocks = page
    return built


def changes(user: User, answers: dict[str, Answer]) -> Iterator[None]:
    """Yields whenever one of the answers changed, until all are over; stops them if nobody listens any more.

    Nothing comes after the user began a new conversation or asked something else: the page shows that by now.
    """
    try:
        while user.answers is answers:
            over = all(answer.over for answer in answers.values())
            yield
            if over:
                return
            user.news.wait(0.5)
            user.news.clear()
    finally:
        for answer in answers.values():
            answer.stop()


def conversation(answer: Answer) -> list[dict[str, Any]]:
    """What the model remembers, the question and its answer so far, as a chatbot shows them; clips can be played."""
    messages = list(answer.session.history)
    if not (len(messages) > 1 and messages[-2] is answer.message):
        said = answer.text or {WAITING: "…", ANSWERING: "…", FAILED: f"⚠ {answer.error}"}.get(answer.state, "—")
        messages += [answer.message, {"role": "assistant", "content": said}]
    return [
        {"role": message["role"], "content": content} for message in messages for content in _shown(message["content"])
    ]


def latency(answer: Answer) -> str:
    """How far an answer is and how long its firsts took, for a line below it."""
    if answer.state == WAITING:
        return f"waiting for {answer.ahead} earlier question(s)" if answer.ahead else "waiting"
    seconds = answer.seconds
    names = {"first_text": "first text", "first_audio": "first audio", "total": "total"}
    parts = [f"{label} {seconds[key]:.2f} s" for key, label in names.items() if key in seconds]
    if seconds.get("waited", 0.0) > 0.1:
        parts.append(f"of it waiting {seconds['waited']:.2f} s")
    if answer.chunks:
        parts.append(f"{sum(map(len, answer.chunks)) / answer.sample_rate:.1f} s of sound")
    if answer.state in (DONE, STOPPED):
        parts.append(f"{answer.tokens} tokens" + (", stopped" if answer.state == STOPPED else ""))
    heard = f"heard: {html.escape(' / '.join(answer.heard))}" if answer.heard else ""
    return "  \n".join(filter(None, [" · ".join(parts), heard]))


def player(name: str, autoplay: bool) -> str:
    """A player that starts with the first chunk; of several answers one is played at once."""
    return f'<audio controls {"autoplay" if autoplay else ""} src="sound/{name}.wav"></audio>'


def _shown(content: str | list[dict[str, Any]]) -> list[str | dict[str, str]]:
    """A message in the pieces a chatbot has bubbles for: texts, and files of sound while they are there."""
    if isinstance(content, str):
        return [content]
    pieces: list[str | dict[str, str]] = []
    for part in content:
        if part["type"] == "text":
            pieces.append(part["text"])
        elif Path(part["path"]).is_file():
            pieces.append({"path": part["path"]})
        else:  # uploads are deleted after an hour
            pieces.append(f"(spoken, {len(part['array']) / SAMPLE_RATE:.1f} s)")
    return pieces


def _named(error: str, clip: str | None) -> str:
    """The message without the folder that the upload happens to lie in."""
    return error.replace(clip, Path(clip).name) if clip else error
