"""`solm study`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import PydanticUndefined
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from solm.cli import checks
from solm.cli.options import HELP, verb
from solm.cli.output import output, print_json, progress_bar
from solm.cli.sources import read_sources
from solm.runtime.facts import AUTO, shipped_policy


class StudyGroup(TyperGroup):
    """A command for every study. Its module is imported when it runs or when its own help is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from solm.research.studies import STUDIES

        return list(STUDIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from solm.research.studies import STUDIES

        return LazyStudy(cmd_name, help=STUDIES[cmd_name].about) if cmd_name in STUDIES else None


class LazyStudy(TyperCommand):
    """Name and one line of a study; its options are read from its module."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return command(str(self.name)).make_context(info_name, args, parent, **extra)


def command(name: str) -> Any:
    """The command of the study called `name`, with an option for every field of its `Options`."""
    from solm.research.studies import study

    found = study(name).load()

    def run(out: Path | None, plot: Path | None, json: bool, **values: Any) -> None:
        from solm.core.files import resumable, write_bytes, write_text
        from solm.evaluation.pictures import kind_of

        checks.out_file(out)
        checks.plot_file(plot)
        given = {key: value for key, value in values.items() if value is not None}
        chosen = checks.settings(found.Options, **given)
        chosen = _checked(chosen)
        with resumable(out) as partial, progress_bar() as progress:
            result = found.run(chosen, partial, lambda part, done, total: progress.show(name, done, total, part))
            if out is not None:
                write_text(out, result.model_dump_json(indent=2) + "\n")
        if plot is not None:
            write_bytes(plot, found.plot(result, kind_of(plot)))
        if json:
            print_json(result.model_dump(mode="json"))
            return
        for line in found.lines(result):
            output().print(line, markup=False)

    parameters = [_parameter(key, field) for key, field in found.Options.model_fields.items()]
    parameters += [
        inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[
            Path | None, typer.Option("--out", "-o", help="Write the result here; an interrupted study continues.")
        ]),
        inspect.Parameter("plot", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[
            Path | None, typer.Option(help="Write a picture (.png or .svg) here.")
        ]),
        inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[
            bool, typer.Option("--json", help="Print the result as one JSON object.")
        ]),
    ]  # fmt: skip
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    about, _, example = (inspect.getdoc(found) or "").partition("\n\nExample: ")
    run.__doc__ = f"{about}\n\n\b\nExample:\n  {example}"
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.command(name, context_settings=HELP)(verb(run))
    return get_command(app)


def _checked(chosen: Any) -> Any:
    """The options of a study, whose model, policy and texts were checked before the model is loaded; the policy
    ``auto`` is replaced by the one that it stands for."""
    from solm.research.studies import StudyOptions

    backend = getattr(chosen, "backend", "torch")
    config = checks.model_config(chosen.model, chosen.revision, chosen.trust_remote_code, backend=backend)
    checks.backend(backend, None, None, chosen.dtype)
    checks.tokenizer(chosen.model, chosen.revision, chosen.trust_remote_code)
    space = checks.space_of(getattr(chosen, "space", None))
    policy = getattr(chosen, "policy", None)
    if policy == AUTO:
        with checks.option("--policy"):
            policy = shipped_policy(config)
        chosen = chosen.model_copy(update={"policy": policy})
    trained = checks.trained_policy(policy, config, space)
    chosen.check(config.shapes, config.context, trained)
    if isinstance(chosen, StudyOptions):
        contexts = getattr(chosen, "contexts", None)
        longest, name = (chosen.context, "--context") if contexts is None else (int(contexts[-1]), "--contexts")
        checks.room(config, longest + chosen.length, f"{name} and --length")
        read_sources(",".join(chosen.data))
    return chosen


def _parameter(name: str, field: Any) -> inspect.Parameter:
    """A field of a study's options as an option; several values are separated by commas."""
    if field.annotation is bool:
        switch = Annotated[bool, typer.Option(checks.typed(name), help=field.description)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=switch)
    kind = field.annotation if field.annotation in (int, float) else str
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
    elif kind is str and default is not None and default is not PydanticUndefined:
        default = str(default)
    required = field.is_required()
    of: Any = kind if required or default is not None else kind | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=inspect.Parameter.empty if required else default,
        annotation=Annotated[of, typer.Option(help=field.description)],
    )  # fmt: skip


studies = typer.Typer(
    cls=StudyGroup,
    invoke_without_command=True,
    help="Studies of the method. `solm study NAME --help` explains one.\n\n\b\nExample:\n"
    "  solm study kv-drift --data pydoc:heldout --out drift.json --plot drift.svg",
)


@studies.callback()
def _listed(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        output().print(context.get_help(), markup=False)
