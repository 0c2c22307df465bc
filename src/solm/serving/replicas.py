"""Several server processes through Ray Serve, with its proxy, health checks and restarts, on a machine or a cluster."""

from collections.abc import Callable

from fastapi import FastAPI

from solm.core.errors import SolmError


def serve_replicas(build: Callable[[], FastAPI], replicas: int, host: str, port: int, cores: float) -> None:
    """Run `replicas` processes of the application that `build` makes, behind one address, until interrupted.

    cores: CPU cores reserved for each replica. A request goes to the replica with the fewest in flight. Every replica
    has a prefix cache and a governor of its own.
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
