"""A page in the browser: upload or record speech, read the words.

python app.py [--model MODEL] [--device DEVICE] [--host HOST] [--port PORT] [--share]
"""

import argparse
import csv
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samba_asr.audio.load import AudioDecodeError, load_audio
from samba_asr.decoding.hotwords import parse_hotwords
from samba_asr.picture import draw
from samba_asr.transcriber import Transcriber

try:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    sys.exit(f"samba-asr: the demo needs Gradio ({error}); install it with: pip install -e '.[demo]'")

EXAMPLES = Path(__file__).parent / "tests" / "data"

CSS = """
.gradio-container { max-width: 46rem !important; margin: 0 auto !important; }
#title h1 { font-size: 2rem; margin-bottom: 0; }
#title p { margin-top: .25rem; }
#words textarea { font-size: 1.15rem; line-height: 1.6; }
#model { opacity: .7; font-size: .85rem; }
"""

OWN_HOST_ONLY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'"
)


class OwnHostOnly:
    """Forbid the page, by its Content-Security-Policy, to ask anything of another host."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", OWN_HOST_ONLY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_demo(transcriber: Transcriber) -> gr.Blocks:
    """Build the page: a recording in, its words out, and a picture of where they are said."""

    def transcribe(audio: str | None, names: str = "") -> tuple[str, str]:
        if audio is None:
            raise _error("There is nothing to transcribe yet: upload a recording or make one.")
        try:
            hotwords = parse_hotwords(names.strip()) if names and names.strip() else None
            waveform = load_audio(audio, transcriber.sample_rate)
            transcript = transcriber.transcribe(waveform, hotwords=hotwords)
            picture = draw(transcript, transcriber.features(waveform), transcriber.seconds_per_frame)
        except AudioDecodeError as error:
            raise _error(f"{Path(audio).name} {error.reason}.") from error
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise _error(f"{Path(audio).name} cannot be transcribed: {error or type(error).__name__}") from error
        if not transcript.text:
            gr.Info("No words were heard.")
        return transcript.text, picture

    with gr.Blocks(title="Samba-ASR", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(
            "# Samba-ASR\nSpeech to words with state-space models alone: no attention anywhere.", elem_id="title"
        )
        audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Recording", buttons=["download"])
        names = gr.Textbox(
            label="Names and jargon",
            info="Words that may be said, with commas in between; a weight may follow: Nadezhda, Kubernetes:2",
            value="",
            lines=1,
            max_lines=4,
            visible=transcriber.search.search == "joint",
            elem_id="names",
        )
        button = gr.Button("Transcribe", variant="primary")
        words = gr.Textbox(label="Words", lines=4, buttons=["copy"], interactive=False, elem_id="words")
        picture = gr.HTML(label="Where they are said", elem_id="picture")
        if examples := _examples():
            gr.Examples(
                list(examples),
                inputs=audio,
                outputs=[words, picture],
                fn=lambda example: transcribe(example),  # of its own name: transcribe is the other way's, in the API
                run_on_click=True,
                cache_examples=False,
                api_visibility="private",
                example_labels=list(examples.values()),
            )
        gr.Markdown(
            f"Model: `{transcriber.name}`. Recordings stay on the machine that runs this page.", elem_id="model"
        )
        gr.on(
            [button.click, audio.upload, audio.stop_recording],
            transcribe,
            [audio, names],
            [words, picture],
            api_name="transcribe",
        )
        audio.clear(lambda: ("", ""), outputs=[words, picture], api_visibility="private")
    return demo


def launch(demo: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serve the page with its looks and without any other host; options are those of ``gr.Blocks.launch``."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="teal", font=fonts, font_mono=["ui-monospace", "monospace"])
    return demo.launch(
        theme=theme,
        css=CSS,
        footer_links=["api"],
        ssr_mode=False,
        app_kwargs={"middleware": [Middleware(OwnHostOnly)]},
        **options,
    )


def _error(message: str) -> gr.Error:
    return gr.Error(message, duration=None, print_exception=False)


def _examples() -> dict[str, str]:
    """Return the checkout's clips, each with the words that it begins with; none outside a checkout."""
    if not (EXAMPLES / "transcripts.tsv").is_file():
        return {}
    with open(EXAMPLES / "transcripts.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {str(EXAMPLES / row["file"]): " ".join(row["text"].lower().split()[:4]) + " …" for row in rows}


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return int(text)


def _check_host(host: str) -> None:
    """Raise ValueError for a host that is no address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        advice = "use 127.0.0.1, or 0.0.0.0 to serve other machines too"
        raise ValueError(f"--host ({host!r}) is no address of this machine; {advice}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted; return the exit status (2: no such model, device or host, or port taken)."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="A page in the browser: upload or record, read the words."
    )
    parser.add_argument("--model", metavar="MODEL", help="a checkpoint folder or a model's name (as in transcribe.py)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=7860, help="1 to 65535 (default: 7860)")
    parser.add_argument("--share", action="store_true", help="also make a public address, through Gradio's servers")
    arguments = parser.parse_args(argv)
    try:
        _check_host(arguments.host)
        demo = build_demo(Transcriber.load(arguments.model, arguments.device))
        launch(demo, server_name=arguments.host, server_port=arguments.port, share=arguments.share)
    except (OSError, ValueError) as error:
        print(f"samba-asr: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
