"""More servers than one, through Ray Serve: its proxy, its health checks and restarts, on one machine or a cluster."""

from collections.abc import Callable

from fastapi import FastAPI

from solm.core.errors import SolmError


def serve_replicas(build: Callable[[], FastAPI], replicas: int, host: str, port: int, cores: float) -> None:
    """Run `replicas` processes of the application that `build` makes, behind one address, until interrupted.

    cores: what each replica is given; Ray puts them where there is room. Requests go to the replica with the fewest in
    flight, so the prefix cache and the governor are each replica's own.
    Raises `SolmError` where the extra is not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise SolmError(f"replicas need the extra: pip install 'solm[ray]' ({error})") from error

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=4096, ray_actor_options={"num_cpus": cores})
    @serve.ingress(build)
    class Replica:
        """One process with a model of its own."""

    ray.init(ignore_reinit_error=True, log_to_driver=True, include_dashboard=False)
    serve.start(http_options=serve.HTTPOptions(host=host, port=port))
    try:
        serve.run(Replica.bind(), name="solm", route_prefix="/", blocking=True)  # type: ignore[attr-defined]
    finally:
        serve.shutdown()
