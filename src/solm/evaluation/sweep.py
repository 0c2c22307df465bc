"""Many evaluations from one file: models × policies × spaces, perplexity and tasks, resumable at any point."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solm.backends.cpu.files.sources import identity_of
from solm.backends.names import folder_of, gguf_of
from solm.core.actions import ActionSpace
from solm.core.errors import DamagedFileError, RunMismatchError, SolmError
from solm.core.files import locked, write_json, write_text
from solm.core.provenance import MOST_SEED, command_line, environment
from solm.data.text import documents
from solm.data.windows import token_stream
from solm.evaluation.cluster import run_on_ray
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

MANIFEST, RESULTS, JOBS = "manifest.json", "results.jsonl", "jobs"


class SweepConfig(BaseModel):
    """A grid of evaluations. Everything plural is a dimension; a policy of None compares the baselines alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(("builtin:smollm2-135m",), min_length=1)
    policies: tuple[str | None, ...] = Field((None,), min_length=1)
    spaces: tuple[str | None, ...] = Field((None,), min_length=1)
    """Action space presets; None: the policy's own."""
    data: tuple[str, ...] = ()
    """Sources of held-out text; all of them make one perplexity evaluation."""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks, an evaluation each."""
    task_data: Path | None = None
    budgets: tuple[float, ...] = Field((0.55, 0.65, 0.75), min_length=1)
    texts: int = Field(64, ge=1)
    context: int = Field(512, ge=1)
    length: int = Field(128, ge=1)
    trials: int = Field(8, ge=1)
    limit: int | None = Field(None, ge=1)
    fewshot: int | None = Field(None, ge=0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    """Branch, tag or commit of the models on the hub."""
    trust_remote_code: bool = False
    seed: int = Field(0, ge=0, le=MOST_SEED)

    @model_validator(mode="after")
    def _check_work(self) -> "SweepConfig":
        if not self.data and not self.tasks:
            raise ValueError("nothing to do: give data (texts) or tasks")
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets {list(self.budgets)} name one value twice")
        for policy in self.policies:
            for space in self.spaces:
                if policy is None and space is None:
                    raise ValueError("a sweep without a policy needs spaces")
                if space is not None:
                    ActionSpace.preset(space)
        return self


class Job(BaseModel):
    """One evaluation of the grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    policy: str | None
    space: str | None
    task: str | None
    """None: perplexity."""

    @property
    def name(self) -> str:
        """A file name that says what it is and does not depend on what else is in the grid."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.task or 'perplexity'}-{self.space or 'own'}-{digest}"


def jobs(config: SweepConfig) -> list[Job]:
    """The grid, in the order of its dimensions."""
    what = [*([None] if config.data else []), *config.tasks]
    return [
        Job(model=model, policy=policy, space=space, task=task)
        for model in config.models for policy in config.policies for space in config.spaces for task in what
    ]  # fmt: skip


def read_config(path: Path, values: dict[str, Any]) -> SweepConfig:
    """A configuration from keys and values; raises `SolmError` that names the bad one."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise SolmError(f"{path}: {where}: {first['msg']}") from error


def sweep(
    config: SweepConfig,
    out: Path,
    report: Callable[[str, int, int], None] = lambda job, done, total: None,
    ray_cores: int | None = None,
) -> list[Path]:
    """Run what is not finished yet in the folder `out`; the results' files, also joined in ``results.jsonl``.

    Killed at any moment and run again, it goes on inside the job it was in. report: name of the job, jobs done and in
    all. ray_cores: run the jobs on Ray, so many cores each; the results are the same. Raises `RunMismatchError` where
    `out` holds another sweep, or one of other weights, policies or text, or is in use.
    """
    with locked(out, "sweeping"):
        return _sweep(config, out, report, ray_cores)


def _sweep(
    config: SweepConfig, out: Path, report: Callable[[str, int, int], None], ray_cores: int | None
) -> list[Path]:
    grid = jobs(config)
    manifest: dict[str, Any] = {"config": config.model_dump(mode="json"), "jobs": [job.name for job in grid]}
    manifest["made_of"] = _fingerprints(config)
    if (out / MANIFEST).exists():
        _check_same(manifest, {"made_of": manifest["made_of"], **_read_manifest(out / MANIFEST)}, out)
    write_json(out / MANIFEST, manifest | {"command": command_line(), "environment": environment()})
    if ray_cores is not None:
        missing = [
            (job, out / JOBS / f"{job.name}.json") for job in grid if not (out / JOBS / f"{job.name}.json").exists()
        ]
        told = config.model_dump_json()
        calls = {job.name: (told, job.model_dump_json(), str(path.resolve()), ray_cores) for job, path in missing}
        run_on_ray(run_job, calls, ray_cores, report)
    finished: list[Path] = []
    loaded: tuple[Job, LanguageModel] | None = None
    for done, job in enumerate(grid):
        report(job.name, done, len(grid))
        path = out / JOBS / f"{job.name}.json"
        if not path.exists():
            if loaded is None or loaded[0].model_copy(update={"task": job.task}) != job:
                loaded = job, _load(job, config)
            _finish(job, loaded[1], config, path)
        finished.append(path)
        # Rewritten after every job, from the jobs' own files: it holds whole lines only, always in the grid's order.
        write_text(out / RESULTS, "".join(json.dumps(json.loads(p.read_text())) + "\n" for p in finished))
    report("", len(grid), len(grid))
    return finished


def _fingerprints(config: SweepConfig) -> dict[str, str]:
    """What tells everything that the configuration names from another thing of that name."""
    found = {f"model {name}": _model_fingerprint(name, config.revision) for name in config.models}
    for name in filter(None, config.policies):
        found[f"policy {name}"] = TrainedPolicy.from_pretrained(name).config.digest
    for source in config.data:
        found[f"text {source}"] = hashlib.sha256(json.dumps(documents(source)).encode()).hexdigest()
    if config.tasks:
        # lm-eval is an extra: a sweep of perplexities needs none.
        from solm.evaluation.local_tasks import load_tasks
        from solm.evaluation.tasks import fingerprint

        for name, tasks in load_tasks(list(config.tasks), config.task_data).items():
            found[f"task {name}"] = fingerprint({name: tasks})
    return found


def _model_fingerprint(name: str, revision: str | None) -> str:
    gguf = gguf_of(name)
    files = [gguf] if gguf is not None else filter(Path.is_file, sorted(folder_of(name, revision).iterdir()))
    return identity_of((path, 0) for path in files)


def _check_same(manifest: dict[str, Any], stored: dict[str, Any], out: Path) -> None:
    """Raises `RunMismatchError` unless the sweep `manifest` is the one that was `stored` in `out`."""
    if any(stored.get(key) != manifest[key] for key in ("config", "jobs")):
        raise RunMismatchError(f"{out} holds another sweep; choose another --out")
    for name, now in manifest["made_of"].items():
        if stored["made_of"].get(name) != now:
            raise RunMismatchError(f"{out} holds a sweep from before the {name} changed; choose another --out")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    return known


def run_job(config: str, job: str, path: str, cores: int) -> None:
    """A job, as JSON, from nothing: what a worker does."""
    torch.set_num_threads(cores)
    settings, what, target = SweepConfig.model_validate_json(config), Job.model_validate_json(job), Path(path)
    _finish(what, _load(what, settings), settings, target)


def _load(job: Job, config: SweepConfig) -> LanguageModel:
    trained = None if job.policy is None else TrainedPolicy.from_pretrained(job.policy)
    if trained is not None and job.space is not None:
        trained = trained.with_space(ActionSpace.preset(job.space))
    return load(
        job.model, trained, dtype=config.dtype, backend="torch", revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip


def _finish(job: Job, lm: LanguageModel, config: SweepConfig, path: Path) -> None:
    """Write the result of a job to `path`; what it has found so far is kept beside that until then."""
    partial = path.with_suffix(".partial")
    write_text(path, _run(job, lm, config, partial) + "\n")
    partial.unlink(missing_ok=True)


def _run(job: Job, lm: LanguageModel, config: SweepConfig, partial: Path) -> str:
    """The result of a job as JSON."""
    space = None if job.space is None else ActionSpace.preset(job.space)
    assert lm.tokenizer is not None
    if job.task is None:
        settings = EvaluationSettings(
            budgets=config.budgets, texts=config.texts, context=config.context, length=config.length,
            trials=config.trials, seed=config.seed,
        )  # fmt: skip
        streams = [token_stream(source, lm.tokenizer) for source in config.data]
        return evaluate(lm, streams, settings, space, partial).model_dump_json(indent=2)
    # lm-eval is an extra: a sweep of perplexities needs none.
    from solm.evaluation.local_tasks import load_tasks
    from solm.evaluation.tasks import TaskSettings, evaluate_tasks

    asked = TaskSettings(
        tasks=(job.task,), budgets=config.budgets, limit=config.limit, fewshot=config.fewshot, seed=config.seed
    )
    tasks = load_tasks([job.task], config.task_data)
    return evaluate_tasks(lm, tasks, asked, space, partial=partial).model_dump_json(indent=2)
