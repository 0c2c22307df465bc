"""solm on Ray Serve: an ingress whose replicas each build the whole server, with a model and a prefix cache of its own.

    pip install '.[serve]' 'ray[serve]' mmh3
    cd deploy/ray && serve run --working-dir . solm_app:app

A conversation stays with the replica that keeps its prompt where clients send its name as `x-session-id`. Replicas come
and go by the number of requests that each has in hand.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

MODEL = os.environ.get("SOLM_MODEL", "builtin:smollm2-135m")
POLICY = os.environ.get("SOLM_POLICY") or None
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


def build():
    """The ASGI app of a replica. The model belongs to the thread that decodes, so that thread loads it."""
    import solm
    from solm.serving.app import create_app
    from solm.serving.service import Service
    from solm.serving.settings import ServeSettings

    thread = ThreadPoolExecutor(1, thread_name_prefix="solm-decode")
    service = thread.submit(
        lambda: Service(solm.load(MODEL, policy=POLICY), ServeSettings(), MODEL, thread=thread)
    ).result()
    app = create_app(service)
    begin = app.router.lifespan_context

    @asynccontextmanager
    async def until_warm(app):
        async with begin(app):
            while service.state == "starting":  # the replica gets requests once this has ended
                await asyncio.sleep(0.1)
            yield

    app.router.lifespan_context = until_warm
    return app


@serve.deployment(
    autoscaling_config=AutoscalingConfig(min_replicas=2, max_replicas=8, target_ongoing_requests=4),
    max_ongoing_requests=16,  # of a replica; more wait at the router
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
    ),
    ray_actor_options={"num_cpus": THREADS, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(THREADS)}}},
)
@serve.ingress(build)
class Solm:
    """What answers; its routes are those of `solm serve`."""


app = Solm.bind()
