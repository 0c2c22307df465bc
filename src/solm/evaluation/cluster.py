"""A sweep's jobs on a Ray cluster, or on this machine's cores where there is none."""

from collections.abc import Callable
from typing import Any

from solm.core.errors import SolmError


def run_on_ray(
    run: Callable[..., None],
    calls: dict[str, tuple[Any, ...]],
    cores: int,
    report: Callable[[str, int, int], None],
) -> None:
    """Make every one of the named `calls` of `run` in a worker of `cores` cores, as many at once as fit.

    A worker that is killed is started again, up to three times; `run` must write what it makes whole or not at all,
    into a folder that all machines share. The cluster is the one that RAY_ADDRESS names, else one is started here.
    Raises `SolmError` where Ray is missing or a job fails for good.
    """
    try:
        import ray
    except ImportError as error:
        raise SolmError(f"--ray needs the extra: pip install '.[ray]' in a checkout of solm ({error})") from error
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    remote: Any = ray.remote(num_cpus=cores, max_retries=3)(run)
    waiting = {remote.remote(*arguments): name for name, arguments in calls.items()}
    total = len(waiting)
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(done)
            ray.get(done)
            report(name, total - len(waiting), total)
    except ray.exceptions.RayError as error:
        raise SolmError(f"a job failed on Ray: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
