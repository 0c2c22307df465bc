"""Options of `solm serve` alone. Where vLLM has the same option under another name, that name works as well."""

from pathlib import Path
from typing import Annotated

import typer

NameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        "--served-model-name",
        help="Name of the model for clients, in addition to --model; by default the last part of its path. May be "
        "repeated: all names work, and answers contain the first.",
    ),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")]
PortOption = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
MaxRowsOption = Annotated[
    int | None,
    typer.Option(
        "--max-rows",
        "--max-num-seqs",
        help="Replies that decode together; by default 16, or as many as fit into memory.",
    ),
]
MaxModelLenOption = Annotated[
    int | None, typer.Option(help="Most tokens of a prompt and its reply together; by default the model's context.")
]
MaxWaitingOption = Annotated[int, typer.Option(help="Replies that may wait; more are refused with 429.")]
MaxSecondsOption = Annotated[float, typer.Option(help="Longest time for a request, in seconds.")]
PrefixOption = Annotated[
    float, typer.Option(help="Megabytes of earlier prompts to keep for prompts that begin alike; 0: none.")
]
DrainOption = Annotated[
    float, typer.Option(help="Seconds that requests in flight may still take when the server stops.")
]
ObjectiveOption = Annotated[
    float | None,
    typer.Option(
        help="Milliseconds per token to stay below: under load budgets fall where that is measured to save time. "
        "Without it only a request's own deadline_ms lowers its budget."
    ),
]
FloorOption = Annotated[
    str | None, typer.Option(help="Lowest budget that --slo-tpot-ms may set, in any form of generate's --budget.")
]
PriorityFloorOption = Annotated[
    list[str] | None,
    typer.Option(help="As --slo-floor, for requests of one priority (low, normal or high), such as low=0.5."),
]
KeyFloorOption = Annotated[
    list[str] | None, typer.Option(help="As --slo-floor, for requests under a named API key, such as alice=0.8.")
]
KeyPriorityOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Priority of requests under a named API key that name none, and the highest that they may name, such as "
        "alice=low."
    ),
]
RowsOption = Annotated[
    bool, typer.Option(help="Let prompts wait while replies that decode would else miss --slo-tpot-ms.")
]
AlwaysSkipOption = Annotated[
    bool,
    typer.Option(
        "--always-skip",
        help="Skip the channels that budgets ask for even where so many replies decode together that it saves no time, "
        "as when the quality of budgets is measured.",
    ),
]
SocketOption = Annotated[
    Path | None,
    typer.Option("--uds", help="Unix socket to listen on in place of a port; --host says which names are accepted."),
]
ApiKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        help="API key, as SECRET or NAME:SECRET; may be repeated. Other users of this machine can read it in the list "
        "of processes, unlike SOLM_API_KEYS."
    ),
]
IgnoreOption = Annotated[
    bool,
    typer.Option(
        "--ignore-unknown", help="Ignore fields of requests that are not supported, and name them in a header."
    ),
]
RootPathOption = Annotated[str, typer.Option(help="Prefix that a proxy puts before all paths, such as /llm.")]
OriginOption = Annotated[
    list[str] | None,
    typer.Option(help="Site whose pages may call the API from a browser (CORS), such as https://example.org, or *."),
]
TemplateOption = Annotated[Path | None, typer.Option(help="File of a chat template in place of the model's own.")]
