"""`solm serve`."""

import errno
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from solm.cli import checks
from solm.cli.options import ModelOptions, assignments, mention_policy
from solm.cli.output import print_json, read_weights, say
from solm.core.errors import SolmError, argument

if TYPE_CHECKING:
    from solm.runtime.load import Prepared
    from solm.serving.keys import ApiKey
    from solm.serving.service import Service
    from solm.serving.settings import ServeSettings

_GIB = 1 << 30
_LEAST_WEIGHT = 0.5
"""Bytes: weights of 4 bits."""


def serve(
    model: ModelOptions,
    policy: str | None = None,
    timings: Path | None = None,
    draft: str | None = None,
    name: list[str] | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    uds: Path | None = None,
    max_rows: int | None = None,
    max_model_len: int | None = None,
    slo_tpot_ms: float | None = None,
    slo_floor: str | None = None,
    api_key: list[str] | None = None,
    set: list[str] | None = None,
    json: bool = False,
) -> None:
    """Serve a model over OpenAI's API, with a compute budget per request, and a page to try it at /.

    API keys are read from the environment variable SOLM_API_KEYS, separated by commas, each as SECRET or NAME:SECRET,
    and from --api-key. Without any, nobody needs one.

    \b
    Examples:
      solm serve --policy builtin:smollm2-135m-cpu
      solm serve --model HuggingFaceTB/SmolLM2-360M-Instruct --port 9000
      SOLM_API_KEYS=secret solm serve --host 0.0.0.0 --slo-tpot-ms 25 --slo-floor 0.5
      SOLM_API_KEYS=a:one,b:two solm serve --slo-tpot-ms 25 --set priority_floors.low=0.5 --set key_floors.b=0.8
      solm serve --served-model-name gpt-4o-mini --max-num-seqs 8 --max-model-len 4096 --set ignore_unknown=true

    Args:
        name: Name of the model for clients, in addition to --model; by default the last part of its path. May be
            repeated: all names work, and answers contain the first.
        host: Address to listen on; 0.0.0.0 opens the server to the network.
        port: Port to listen on.
        uds: Unix socket to listen on in place of a port; --host says which names are accepted.
        max_rows: Replies that decode together; by default 16, or as many as fit into memory.
        max_model_len: Most tokens of a prompt and its reply together; by default the model's context.
        slo_tpot_ms: Milliseconds per token to stay below: under load budgets fall where that is measured to save time.
            Without it only a request's own deadline_ms lowers its budget.
        slo_floor: Lowest budget that --slo-tpot-ms may set, in any form of generate's --budget.
        api_key: API key, as SECRET or NAME:SECRET; may be repeated. Other users of this machine can read it in the list
            of processes, unlike SOLM_API_KEYS.
        set: Another setting as NAME=VALUE, such as max_waiting=64, prefix_mb=512, drain_seconds=5, ignore_unknown=true,
            open_metrics=true, priority_floors.low=0.5 or key_floors.alice=0.8; may be repeated.
    """
    try:
        import uvicorn

        from solm.serving.app import create_app
        from solm.serving.logs import tracing_wanted
    except ImportError as error:
        raise SolmError(f"serving needs the extra: pip install '.[serve]' in a checkout of solm ({error})") from error

    from solm.serving.keys import keys_of
    from solm.serving.settings import ServeSettings

    tracing_wanted()  # raises where something is missing for it
    names = list(dict.fromkeys(name or []))
    if "" in names:
        raise SolmError("--name: it is empty")
    limits = {"max_rows": max_rows, "max_model_len": max_model_len, "slo_tpot_ms": slo_tpot_ms, "slo_floor": slo_floor}
    chosen = checks.settings(
        ServeSettings, assignments(set), **{key: value for key, value in limits.items() if value is not None}
    )
    if any(not text.strip() for text in api_key or []):
        raise SolmError("--api-key: it is empty")
    secrets = [*os.environ.get("SOLM_API_KEYS", "").split(","), *(api_key or [])]
    keys = keys_of([text.strip() for text in secrets if text.strip()], chosen)
    prepared = model.prepare(policy, timings, draft=draft)
    if policy is None:
        mention_policy(prepared)
    _check_floors(prepared, chosen)
    if max_model_len is not None:
        with argument("max_model_len"):
            prepared.check_room(max_model_len)
    chosen = _rows_that_fit(prepared, chosen, explicit=max_rows is not None)
    place = _place(host, port, uds)
    local = ("127.0.0.1", "localhost", "::1")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}" if uds is None else f"unix:{uds}"

    service = _service(prepared, chosen, names, keys)
    app = create_app(service, local if host in local else None)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", timeout_keep_alive=75, limit_concurrency=4096,
        timeout_graceful_shutdown=max(1, round(chosen.drain_seconds)),
    )  # fmt: skip
    place.listen(2048)  # connections wait from here on
    served = names[0] if names else prepared.asked
    say(f"solm: {served} at {address}/v1, a page to try it at {address}/")
    if json:
        print_json({"model": served, "address": f"{address}/v1", "page": f"{address}/"})
    try:
        uvicorn.Server(config).run([place])
    finally:
        service.scheduler.stop()  # a second Ctrl-C skips the application's own end


def _service(prepared: "Prepared", chosen: "ServeSettings", names: list[str], keys: "list[ApiKey]") -> "Service":
    """What answers requests, around a model that belongs to the thread that decodes."""
    from concurrent.futures import ThreadPoolExecutor

    from solm.serving.logs import log_lines
    from solm.serving.service import Service

    log_lines()
    thread = ThreadPoolExecutor(1, thread_name_prefix="solm-decode")

    def make() -> Service:
        lm = read_weights(prepared, 0.9)  # any budget in time
        aliases = [*names, prepared.asked]
        return Service(lm, chosen, names[0] if names else lm.name, thread=thread, aliases=aliases, keys=keys)

    loading = thread.submit(make)
    try:
        return loading.result()
    except KeyboardInterrupt:  # Python would wait for the thread that loads
        print("solm: interrupted", file=sys.stderr, flush=True)
        os._exit(130)


def _check_floors(prepared: "Prepared", chosen: "ServeSettings") -> None:
    """Refuse floors that are no budgets of this model; one below the least there is stands for that."""
    from solm.core.budget import BudgetRequest

    floors: dict[str, Any] = {} if chosen.slo_floor is None else {"--slo-floor": chosen.slo_floor}
    floors |= {f"--set priority_floors.{name}": floor for name, floor in chosen.priority_floors.items()}
    floors |= {f"--set key_floors.{name}": floor for name, floor in chosen.key_floors.items()}
    met = prepared.budgets()
    for typed, floor in floors.items():
        try:
            request = BudgetRequest.parse(floor)
            if request.in_time and request.kind != "loss" and prepared.source is not None and prepared.times is None:
                continue  # this machine is timed later
            met.budget(request, prepared.facts.context or 1 << 20, clamp=True)
        except SolmError as error:
            raise type(error)(f"{typed}: {error}") from error


def _rows_that_fit(prepared: "Prepared", chosen: "ServeSettings", explicit: bool) -> "ServeSettings":
    """Settings whose rows, each as long as the context, fit into the free memory beside weights and prefixes.

    explicit: so many rows were requested, which is refused where they do not fit; else there are fewer. Where the
    context is not known nothing is checked. Weights count as little as they may take.
    """
    from solm.backends.machine import free_memory

    context = chosen.max_model_len or prepared.facts.context
    if context is None:
        return chosen
    row, weights = 0, 0.0
    for each in filter(None, (prepared, prepared.drafting)):
        shapes, row = each.facts.shapes, row + each.cache_bytes(min(context, each.facts.context or context))
        weights += _LEAST_WEIGHT * (shapes.layers * shapes.layer_weights + shapes.head_weights)
    left = max(0, free_memory() - int(weights + chosen.prefix_mb * 1e6))
    most = left // row
    if chosen.max_rows <= most:
        return chosen
    if explicit or not most:
        raise SolmError(
            f"--max-rows: {chosen.max_rows} rows of {context} tokens take {chosen.max_rows * row / _GIB:.1f} GiB of "
            f"keys and values, and {left / _GIB:.1f} GiB of memory are left beside weights and prefix_mb: {most} fit"
        )
    return chosen.model_copy(update={"max_rows": most})


def _place(host: str, port: int, uds: Path | None) -> socket.socket:
    """A socket at the port or the Unix socket. One of a server that has ended is replaced."""
    try:
        family, address = socket.AF_UNIX, cast(Any, str(uds))
        if uds is None:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        elif uds.is_socket():
            uds.unlink()
        place = socket.socket(family)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as error:
        where = f"{host} port {port}" if uds is None else str(uds)
        option = "--uds" if uds else "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise SolmError(f"{option}: cannot listen on {where}: {error.strerror or error}") from error
    if uds is not None:
        uds.chmod(0o666)  # as uvicorn does
    return place
