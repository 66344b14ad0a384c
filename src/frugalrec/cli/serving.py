"""The command serve-llm: a local model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("serve-llm")(serve_llm)


def serve_llm(
    model: Annotated[str, typer.Argument(help="An embedded model, a folder, or a Hugging Face id.")],
    adapter: Annotated[Path | None, typer.Option("--adapter", help="An adapter's folder, on top.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call the model; default: MODEL.")
    ] = None,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Listen where other machines reach it; FRUGALREC_API_KEY must hold a key."
        ),
    ] = False,
    batch: Annotated[int, typer.Option("--batch", help="Texts written at the same time.")] = 8,
    queue: Annotated[int, typer.Option("--queue", help="Texts that may wait; more are answered 429.")] = 64,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="The longest answer.")] = 512,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (bfloat16 where the hardware has it), float32 or bfloat16.")
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto takes a GPU if there is one.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads; default: all.")] = None,
) -> None:
    """Serve a local model over HTTP, as OpenAI's API does; Ctrl+C ends it."""
    from frugalrec.cli.progress import spinner
    from frugalrec.errors import require
    from frugalrec.serving import Limits, serve
    from frugalrec.serving.server import check_address

    for module in ("fastapi", "uvicorn"):
        require(module, "serve")
    check_address(host, port, allow_remote)
    limits = Limits(batch=batch, queue=queue, prompts=min(32, queue), max_tokens=max_tokens)
    from frugalrec.llm.local import LocalLM

    with spinner(f"loading {model}"):
        lm = LocalLM.load(
            model,
            adapter=adapter,
            dtype=dtype,  # type: ignore[arg-type]
            device=device,
            threads=threads,
        )
    serve(
        lm,
        limits,
        host=host,
        port=port,
        name=name,
        allow_remote=allow_remote,
        started=lambda address: typer.echo(f"{name or model} is served at {address}; Ctrl+C ends it"),
    )
