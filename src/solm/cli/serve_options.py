"""Options of `solm serve` alone. Where vLLM has the same option under another name, that name works as well."""

from pathlib import Path
from typing import Annotated

import typer

NameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        "--served-model-name",
        help="What clients call the model, beside --model; by default the end of a path. Given several times, all "
        "names work, and answers give the first.",
    ),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens the server to the network.")]
PortOption = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
MaxRowsOption = Annotated[
    int | None,
    typer.Option(
        "--max-rows",
        "--max-num-seqs",
        help="Replies that decode together; by default 16, or as many as memory holds.",
    ),
]
MaxModelLenOption = Annotated[
    int | None, typer.Option(help="Most tokens of a prompt and its reply together; by default the model's context.")
]
MaxWaitingOption = Annotated[int, typer.Option(help="Replies that may wait; more are refused with 429.")]
MaxSecondsOption = Annotated[float, typer.Option(help="Longest time for a request.")]
PrefixOption = Annotated[
    float, typer.Option(help="Megabytes of earlier prompts kept for later ones that begin alike; 0: none.")
]
DrainOption = Annotated[float, typer.Option(help="What requests in flight get when the server stops.")]
ObjectiveOption = Annotated[
    float | None, typer.Option(help="Time per token that budgets are lowered to hold; without, they are left alone.")
]
FloorOption = Annotated[
    str | None, typer.Option(help="Budget, in any form of generate's --budget, below which none is lowered.")
]
PriorityFloorOption = Annotated[
    list[str] | None,
    typer.Option(help="Floor of a priority (low, normal or high) in place of --slo-floor, such as low=0.5."),
]
KeyFloorOption = Annotated[
    list[str] | None, typer.Option(help="Floor of requests under a named API key, such as alice=0.8.")
]
RowsOption = Annotated[
    bool, typer.Option(help="Also decode fewer replies together where the lowest budgets are not enough.")
]
ReplicasOption = Annotated[
    int, typer.Option(help="Processes with a model each, through Ray Serve (extra: ray).", min=1, max=1024)
]
ApiKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        help="API key, as SECRET or NAME:SECRET; several times for several. Other users of this machine can read it "
        "in the list of processes, unlike SOLM_API_KEYS and --keys-file."
    ),
]
KeysFileOption = Annotated[
    Path | None,
    typer.Option(help="TOML or JSON file of API keys, each with a floor and a priority; read again on SIGHUP."),
]
IgnoreOption = Annotated[
    bool,
    typer.Option(
        "--ignore-unknown", help="Answer requests with fields that are not supported, and name those in a header."
    ),
]
RootPathOption = Annotated[str, typer.Option(help="What a proxy puts before all paths, such as /llm.")]
OriginOption = Annotated[
    list[str] | None,
    typer.Option(help="Site whose pages may call the API from a browser (CORS), such as https://example.org, or *."),
]
CertificateOption = Annotated[Path | None, typer.Option(help="Certificates for TLS, PEM; with --ssl-keyfile.")]
CertificateKeyOption = Annotated[Path | None, typer.Option(help="The private key of --ssl-certfile, PEM.")]
TemplateOption = Annotated[Path | None, typer.Option(help="File of a chat template in place of the model's own.")]
