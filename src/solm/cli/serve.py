"""`solm serve`."""

import os
import sys
from dataclasses import replace

from solm.cli import checks, serve_checks
from solm.cli import serve_options as its
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
    SparsityOption,
    TimingsOption,
    TrustOption,
)
from solm.core.errors import SolmError


def serve(
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    space: SpaceOption = None,
    sparsity: SparsityOption = None,
    name: its.NameOption = None,
    host: its.HostOption = "127.0.0.1",
    port: its.PortOption = 8000,
    uds: its.SocketOption = None,
    max_rows: its.MaxRowsOption = None,
    max_model_len: its.MaxModelLenOption = None,
    max_waiting: its.MaxWaitingOption = 256,
    max_seconds: its.MaxSecondsOption = 600.0,
    prefix_mb: its.PrefixOption = 256.0,
    drain_seconds: its.DrainOption = 30.0,
    slo_tpot_ms: its.ObjectiveOption = None,
    slo_floor: its.FloorOption = None,
    priority_floor: its.PriorityFloorOption = None,
    key_floor: its.KeyFloorOption = None,
    key_priority: its.KeyPriorityOption = None,
    slo_rows: its.RowsOption = True,
    always_skip: its.AlwaysSkipOption = False,
    api_key: its.ApiKeyOption = None,
    ignore_unknown: its.IgnoreOption = False,
    chat_template: its.TemplateOption = None,
    root_path: its.RootPathOption = "",
    allow_origin: its.OriginOption = None,
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

    API keys are read from the environment variable SOLM_API_KEYS, separated by commas, each as SECRET or NAME:SECRET,
    and from --api-key. Without any, nobody needs one.

    \b
    Examples:
      solm serve --policy builtin:smollm2-135m-cpu
      solm serve --model HuggingFaceTB/SmolLM2-360M-Instruct --space joint-27 --port 9000
      SOLM_API_KEYS=secret solm serve --host 0.0.0.0 --slo-tpot-ms 25 --slo-floor 0.5
      SOLM_API_KEYS=a:one,b:two solm serve --slo-tpot-ms 25 --priority-floor low=0.5 --key-floor b=0.8
      solm serve --served-model-name gpt-4o-mini --max-num-seqs 8 --max-model-len 4096 --ignore-unknown
    """
    from concurrent.futures import ThreadPoolExecutor

    try:
        import uvicorn

        from solm.serving.app import create_app
        from solm.serving.keys import KeyRing
        from solm.serving.logs import tracing_wanted
        from solm.serving.service import Service
    except ImportError as error:
        raise SolmError(f"serving needs the extra: pip install '.[serve]' in a checkout of solm ({error})") from error

    from solm.cli.output import print_json, repacking, say
    from solm.cli.rows_check import cache_numbers, rows_that_fit
    from solm.cli.server import announcing
    from solm.runtime.load import load
    from solm.serving.logs import log_lines
    from solm.serving.settings import PRIORITIES, ServeSettings

    tracing_wanted()  # raises where something is missing for it
    serve_checks.root_path(root_path)
    serve_checks.origins(allow_origin)
    template = serve_checks.chat_template(chat_template)
    names = list(dict.fromkeys(name or []))
    if "" in names:
        raise SolmError("--name: it is empty")
    floors = serve_checks.by_name(priority_floor, "--priority-floor", list(PRIORITIES))
    keys = serve_checks.api_keys(api_key, key_floor, key_priority)
    chosen = checks.settings(
        ServeSettings, **({} if max_rows is None else {"max_rows": max_rows}), max_waiting=max_waiting,
        max_seconds=max_seconds, prefix_mb=prefix_mb, drain_seconds=drain_seconds, slo_tpot_ms=slo_tpot_ms,
        slo_floor=slo_floor, slo_rows=slo_rows, priority_floors=floors, always_skip=always_skip,
        max_model_len=max_model_len, ignore_unknown=ignore_unknown,
    )  # fmt: skip
    if policy is not None and sparsity is not None:
        raise SolmError("--sparsity: a policy brings its own; drop one of the two")
    how = checks.sparsity_of(sparsity)
    checks.backend(backend, precision, kv_cache_dtype, dtype)
    grid = checks.space_of(space)
    facts = checks.model_config(model, revision, trust_remote_code, backend=backend)
    trained = checks.trained_policy(policy, facts, grid)
    if policy is None and sparsity is None:
        checks.mention_policy(facts)
    checks.tokenizer(model, revision, trust_remote_code)
    known = checks.step_times(timings, model, backend)

    def check_floor(floor: float | str, typed: str) -> None:
        checked_budget(floor, facts, trained, grid, known, typed=typed, clamp=True)

    if slo_floor is not None:
        check_floor(slo_floor, "--slo-floor")
    for which, floor in floors.items():
        check_floor(floor, f"--priority-floor {which}")
    for key in keys:
        if key.floor is not None:
            check_floor(key.floor, f"floor of the API key {key.name}")
    longest = facts
    if max_model_len is not None:
        checks.room(facts, max_model_len, "--max-model-len")
        longest = replace(facts, context=max_model_len)
    numbers = cache_numbers(model, backend, dtype, precision, kv_cache_dtype)
    chosen = rows_that_fit(chosen, longest, *numbers, explicit=max_rows is not None)
    if uds is None:
        serve_checks.listenable(host, port)
    else:
        serve_checks.unix_socket(uds)
    local = ("127.0.0.1", "localhost", "::1")
    hosts = local if host in local else None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}" if uds is None else f"unix:{uds}"
    shown_name = names[0] if names else model

    def build() -> Service:
        log_lines()
        thread = ThreadPoolExecutor(1, thread_name_prefix="solm-decode")

        def make() -> Service:
            # Loaded here and not above: policy and model belong to the thread that decodes.
            own = checks.trained_policy(policy, facts, grid)
            with repacking() as progress:
                lm = load(
                    model, own, sparsity=how, dtype=dtype, backend=backend, precision=precision,
                    kv_cache_dtype=kv_cache_dtype, timings=timings, revision=revision,
                    trust_remote_code=trust_remote_code, progress=progress,
                )  # fmt: skip
            if template is not None and lm.tokenizer is not None:
                lm.tokenizer.chat_template = template
            return Service(
                lm, chosen, names[0] if names else lm.name, grid, thread, aliases=[*names, model], keys=KeyRing(keys)
            )

        loading = thread.submit(make)
        try:
            return loading.result()
        except KeyboardInterrupt:  # Python would wait for the thread that loads
            print("solm: interrupted", file=sys.stderr, flush=True)
            os._exit(130)

    def announce() -> None:
        say(f"solm: {shown_name} at {address}/v1, a page to try it at {address}/")
        if json:
            print_json({"model": shown_name, "address": f"{address}/v1", "page": f"{address}/"})

    service = build()
    config = uvicorn.Config(
        create_app(service, hosts, root_path, allow_origin or ()), host=host, port=port,
        uds=None if uds is None else str(uds), log_config=None, access_log=False, lifespan="on", timeout_keep_alive=75,
        limit_concurrency=4096, timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )  # fmt: skip
    try:
        announcing(config, announce).run()
    finally:
        service.scheduler.stop()  # a second Ctrl-C skips the application's own end
