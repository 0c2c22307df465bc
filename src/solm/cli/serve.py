"""`solm serve`."""

import os
from typing import Annotated

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    DtypeOption,
    KvCacheOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    settings,
)
from solm.core.errors import SolmError


def serve(
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    space: Annotated[
        str | None, typer.Option(help="Action space: of the policy, or without one of static (then: grid).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; by default as --model.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    max_rows: Annotated[int, typer.Option(help="Replies that decode together.")] = 16,
    max_waiting: Annotated[int, typer.Option(help="Replies that may wait; more are refused with 429.")] = 256,
    max_seconds: Annotated[float, typer.Option(help="Longest time for a request.")] = 600.0,
    prefix_tokens: Annotated[int, typer.Option(help="Prompt tokens kept for later prompts that begin alike.")] = 8192,
    drain_seconds: Annotated[float, typer.Option(help="What requests in flight get when the server stops.")] = 30.0,
    slo_tpot_ms: Annotated[
        float | None, typer.Option(help="Time per token that budgets are lowered to hold; none: they are left alone.")
    ] = None,
    slo_floor: Annotated[float | None, typer.Option(help="Net keep below which that never goes.")] = None,
    slo_rows: Annotated[
        bool, typer.Option(help="Also hold replies back where the lowest budgets are not enough.")
    ] = True,
    replicas: Annotated[
        int, typer.Option(help="Processes with a model each, through Ray Serve (extra: ray).", min=1, max=1024)
    ] = 1,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = "auto",
) -> None:
    """Serve a model over OpenAI's API, with a compute budget per request, and a page to try it at /.

    API keys are read from the environment variable SOLM_API_KEYS, separated by commas; without any, nobody needs one.

    Examples:

        solm serve --policy builtin:smollm2-135m

        solm serve --policy builtin:smollm2-135m --replicas 4

        solm serve --model HuggingFaceTB/SmolLM2-360M-Instruct --space joint-27 --port 9000

        SOLM_API_KEYS=secret solm serve --policy runs/a/policy --host 0.0.0.0 --slo-tpot-ms 25 --slo-floor 0.5
    """
    from concurrent.futures import ThreadPoolExecutor

    try:
        import uvicorn

        from solm.serving.app import create_app
        from solm.serving.service import Service
    except ImportError as error:
        raise SolmError(f"serving needs the extra: pip install 'solm[serve]' ({error})") from error
    from fastapi import FastAPI

    from solm.cli.options import in_space
    from solm.core.actions import ActionSpace
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.load import load
    from solm.serving.logs import log_lines
    from solm.serving.settings import ServeSettings

    chosen = settings(
        ServeSettings, max_rows=max_rows, max_waiting=max_waiting, max_seconds=max_seconds,
        prefix_tokens=prefix_tokens, drain_seconds=drain_seconds, slo_tpot_ms=slo_tpot_ms, slo_floor=slo_floor,
        slo_rows=slo_rows,
    )  # fmt: skip
    grid = None if space is None else ActionSpace.preset(space)
    keys = [key.strip() for key in os.environ.get("SOLM_API_KEYS", "").split(",") if key.strip()]
    local = ("127.0.0.1", "localhost", "::1")
    hosts = local if host in local else None

    def build() -> FastAPI:
        log_lines()
        thread = ThreadPoolExecutor(1, thread_name_prefix="solm-decode")

        def make() -> Service:
            trained = None if policy is None else in_space(TrainedPolicy.from_pretrained(policy), grid)
            lm = load(model, trained, dtype=dtype, backend=backend, precision=precision, kv_cache_dtype=kv_cache_dtype)
            return Service(lm, chosen, name or model, grid, thread)

        return create_app(thread.submit(make).result(), keys, hosts)

    shown = f"[{host}]" if ":" in host else host
    announced = f"solm: {name or model} at http://{shown}:{port}/v1, a page to try it at /"
    if replicas > 1:
        from solm.serving.replicas import serve_replicas

        typer.echo(announced, err=True)
        serve_replicas(build, replicas, host, port, max(1.0, (os.cpu_count() or 1) / replicas))
        return
    app = build()
    typer.echo(announced, err=True)
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, lifespan="on",
        timeout_keep_alive=75, limit_concurrency=4096,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )  # fmt: skip
    uvicorn.Server(config).run()
