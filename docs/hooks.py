"""A hook of mkdocs: writes the command line reference and the table of families from the code itself."""

from typing import Any

import typer


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text, with every command or family in place of its mark."""
    if page.file.src_uri == "cli.md":
        return markdown.replace("<!-- commands -->", commands())
    return markdown.replace("<!-- families -->", families()) if page.file.src_uri == "model.md" else markdown


def families() -> str:
    """A markdown table of the cpu backend's families and what their layers are."""
    from solm.backends.cpu.files.spec import FAMILIES

    lines = [
        "| Family | In GGUF files | Normed, in attention and MLP | Queries and keys | Activation | Windows | MLP |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    windows = {None: "", "all": "all layers", "last": "the last layers"}
    for name, family in FAMILIES.items():
        places = family.names
        normed = [what for what, key in (("inputs", ""), ("outputs", "_output")) if f"attention{key}_norm" in places]
        normed = normed or ["inputs"]  # by norms that have no weights
        own = "" if "q_norm" not in places else "normed" if family.whole_norms else "normed by head"
        heads = [own, "biases" if family.qkv_bias else "", "fused" if places["q"].fused else ""]
        kinds = {"experts": family.mixture, "one shared": family.shares_expert, "no gate": not family.gated}
        mlp = [kind for kind, has in {**kinds, "beside attention": family.parallel}.items() if has]
        every = family.sliding
        sliding = f"{every - 1} of {every} layers" if isinstance(every, int) else windows[every]
        lines.append(
            f"| {name} | {family.architecture} | {' and '.join(normed)} | {', '.join(filter(None, heads))} | "
            f"{family.activation} | {sliding} | {', '.join(mlp)} |"
        )
    return "\n".join(lines)


def commands() -> str:
    """Markdown of all commands: usage, help and options."""
    from solm.cli.main import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(section(name, command) for name, command in described(group, "solm"))


def described(group: Any, prefix: str) -> list[tuple[str, Any]]:
    """Every command of `group` with its full name."""
    context = typer.Context(group)
    return [(f"{prefix} {name}", group.get_command(context, name)) for name in group.list_commands(context)]


def section(name: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    required = [option for option in options if option.required]
    usage = " ".join(
        [name, *(argument.name.upper() for argument in arguments), *(f"{o.opts[0]} {o.name.upper()}" for o in required)]
    )
    more = " [OPTIONS]" if len(required) < len(options) else ""
    lines = [f"## {name}", "", f"```\n{usage}{more}\n```", "", help_text(command.help or "")]
    if parameters:
        lines += ["", "| Option | Meaning | Default |", "| --- | --- | --- |"]
        lines += [row(parameter) for parameter in parameters]
    if name == "solm serve":
        lines += ["", *settings()]
    return "\n".join(lines)


def settings() -> list[str]:
    """A table of what `solm serve --set` takes."""
    from solm.serving.settings import ServeSettings

    rows = []
    for name, field in ServeSettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append(f"| `{name}` | {' '.join((field.description or '').split())} | `{default}` |")
    return ["| Setting of `--set` | Meaning | Default |", "| --- | --- | --- |", *rows]


def help_text(text: str) -> str:
    """The help as markdown: indented lines, which are examples, as one block of code."""
    words, code = [], []
    for line in text.replace("\b\n", "").splitlines():
        if line.startswith("  "):
            code.append(line.strip())
        elif line.strip() or not code:
            words.append(line)
    block = "\n\n```\n" + "\n".join(code) + "\n```" if code else ""
    return "\n".join(words).strip() + block


def row(parameter: Any) -> str:
    """One line of the table of options."""
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or callable(default) or "Sentinel" in type(default).__name__:
        shown = ""
    else:
        shown = f"`{default}`" if default is not True else f"`{parameter.opts[0]}`"
    meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| `{name}` | {meaning} | {shown} |"
