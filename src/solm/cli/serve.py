"""`solm serve`."""

import errno
import os
import socket
from typing import Annotated

import typer

from solm.cli import checks
from solm.cli.budget_check import checked_budget
from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    DtypeOption,
    JsonOption,
    KvCacheOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    RevisionOption,
    SpaceOption,
    TimingsOption,
    TrustOption,
)
from solm.core.errors import SolmError


def serve(
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    space: SpaceOption = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model, beside --model; by default the end of a path.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    max_rows: Annotated[
        int | None, typer.Option(help="Replies that decode together; by default 16, or as many as memory holds.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Replies that may wait; more are refused with 429.")] = 256,
    max_seconds: Annotated[float, typer.Option(help="Longest time for a request.")] = 600.0,
    prefix_mb: Annotated[
        float, typer.Option(help="Megabytes of earlier prompts kept for later ones that begin alike; 0: none.")
    ] = 256.0,
    drain_seconds: Annotated[float, typer.Option(help="What requests in flight get when the server stops.")] = 30.0,
    slo_tpot_ms: Annotated[
        float | None,
        typer.Option(help="Time per token that budgets are lowered to hold; without, they are left alone."),
    ] = None,
    slo_floor: Annotated[
        str | None, typer.Option(help="Budget, in any form of generate's --budget, below which none is lowered.")
    ] = None,
    priority_floor: Annotated[
        list[str] | None,
        typer.Option(help="Floor of a priority (low, normal or high) in place of --slo-floor, such as low=0.5."),
    ] = None,
    key_floor: Annotated[
        list[str] | None,
        typer.Option(help="Floor of requests under a named key of SOLM_API_KEYS, such as alice=0.8."),
    ] = None,
    slo_rows: Annotated[
        bool, typer.Option(help="Also decode fewer replies together where the lowest budgets are not enough.")
    ] = True,
    replicas: Annotated[
        int, typer.Option(help="Processes with a model each, through Ray Serve (extra: ray).", min=1, max=1024)
    ] = 1,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = None,
    timings: TimingsOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Serve a model over OpenAI's API, with a compute budget per request, and a page to try it at /.

    API keys are read from the environment variable SOLM_API_KEYS, separated by commas, each as SECRET or NAME:SECRET.
    Without any, nobody needs one.

    \b
    Examples:
      solm serve --policy builtin:smollm2-135m-cpu
      solm serve --policy builtin:smollm2-135m-cpu --replicas 4
      solm serve --model HuggingFaceTB/SmolLM2-360M-Instruct --space joint-27 --port 9000
      SOLM_API_KEYS=secret solm serve --host 0.0.0.0 --slo-tpot-ms 25 --slo-floor 0.5
      SOLM_API_KEYS=a:one,b:two solm serve --slo-tpot-ms 25 --priority-floor low=0.5 --key-floor b=0.8
    """
    from concurrent.futures import ThreadPoolExecutor

    try:
        import uvicorn

        from solm.serving.app import create_app
        from solm.serving.keys import read_keys
        from solm.serving.service import Service
        from solm.serving.tracing import tracing_wanted
    except ImportError as error:
        raise SolmError(f"serving needs the extra: pip install 'solm[serve]' ({error})") from error
    from fastapi import FastAPI

    from solm.cli.output import print_json, repacking, say
    from solm.cli.rows_check import rows_that_fit
    from solm.core.timings import read_timings
    from solm.runtime.load import load
    from solm.serving.logs import log_lines
    from solm.serving.settings import PRIORITIES, ServeSettings

    tracing_wanted()  # raises where something is missing for it
    text = os.environ.get("SOLM_API_KEYS", "")
    keys, names = [part.strip() for part in text.split(",") if part.strip()], [key.name for key in read_keys(text)]
    floors = {
        "priority_floors": _floors(priority_floor, "--priority-floor", list(PRIORITIES)),
        "key_floors": _floors(key_floor, "--key-floor", [name for name in names if name]),
    }
    chosen = checks.settings(
        ServeSettings, **({} if max_rows is None else {"max_rows": max_rows}), max_waiting=max_waiting,
        max_seconds=max_seconds, prefix_mb=prefix_mb, drain_seconds=drain_seconds, slo_tpot_ms=slo_tpot_ms,
        slo_floor=slo_floor, slo_rows=slo_rows, **floors,
    )  # fmt: skip
    checks.backend(backend, precision, kv_cache_dtype, dtype)
    grid = checks.space_of(space)

    def facts() -> checks.ModelFacts:
        return checks.model_config(model, revision, trust_remote_code, on_engine=backend != "torch")

    trained = checks.trained_policy(policy, facts(), grid)
    checks.tokenizer(model, revision, trust_remote_code)
    with checks.option("--timings"):
        known = None if timings is None else read_timings(timings)
    if slo_floor is not None:
        checked_budget(slo_floor, facts(), trained, grid, known, typed="--slo-floor", clamp=True)
    for typed, found in zip(("--priority-floor", "--key-floor"), floors.values(), strict=True):
        for which, floor in found.items():
            checked_budget(floor, facts(), trained, grid, known, typed=f"{typed} {which}", clamp=True)
    chosen = rows_that_fit(chosen, facts(), kv_cache_dtype, explicit=max_rows is not None)
    _check_port(host, port)
    local = ("127.0.0.1", "localhost", "::1")
    hosts = local if host in local else None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"

    def build() -> FastAPI:
        log_lines()
        thread = ThreadPoolExecutor(1, thread_name_prefix="solm-decode")

        def make() -> Service:
            # Loaded here and not above: policy and model belong to the thread that decodes, in every replica.
            own = checks.trained_policy(policy, facts(), grid)
            with repacking() as progress:
                lm = load(
                    model, own, dtype=dtype, backend=backend, precision=precision, kv_cache_dtype=kv_cache_dtype,
                    timings=timings, revision=revision, trust_remote_code=trust_remote_code, progress=progress,
                )  # fmt: skip
            return Service(lm, chosen, name or lm.name, grid, thread, aliases=[model])

        return create_app(thread.submit(make).result(), keys, hosts)

    def announce() -> None:
        say(f"solm: {name or model} at {address}/v1, a page to try it at {address}/")
        if json:
            print_json({"model": name or model, "address": f"{address}/v1", "page": f"{address}/"})

    if replicas > 1:
        from solm.serving.replicas import serve_replicas

        announce()
        serve_replicas(build, replicas, host, port, max(1.0, (os.cpu_count() or 1) / replicas))
        return
    config = uvicorn.Config(
        build(), host=host, port=port, log_config=None, access_log=False, lifespan="on",
        timeout_keep_alive=75, limit_concurrency=4096,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )  # fmt: skip

    class Server(uvicorn.Server):
        """Says where it is once it listens."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                announce()

    Server(config).run()


def _floors(given: list[str] | None, typed: str, known: list[str]) -> dict[str, str]:
    """Budgets by name from a list of NAME=BUDGET; raises `SolmError` for names that are not `known`."""
    found: dict[str, str] = {}
    for each in given or []:
        name, equals, budget = each.partition("=")
        if not (name and equals and budget):
            raise SolmError(f"{typed}: {each!r} is not NAME=BUDGET, such as {known[0] if known else 'alice'}=0.5")
        if name not in known:
            choice = f"choose one of {', '.join(known)}" if known else "SOLM_API_KEYS has no key as NAME:SECRET"
            raise SolmError(f"{typed}: unknown name {name!r}; {choice}")
        if name in found:
            raise SolmError(f"{typed}: {name} is given twice")
        found[name] = budget
    return found


def _check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise SolmError(f"--host: {host!r} is not an address of this machine: {error.strerror}") from error
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise SolmError(f"{option}: cannot listen on {host} port {port}: {error.strerror}") from error
