"""The command tree, and the options that every command shares."""

from __future__ import annotations

from typing import Annotated

import typer

from services import __version__
from services.cli import (
    bpf,
    config,
    egress,
    fqdn,
    history,
    inspection,
    install,
    observe,
    policy,
    preflight,
    sandbox,
    service,
    status,
)
from services.cli import identity as identity_commands
from services.cli.connect import Settings
from services.cli.connectivity import app as connectivity
from services.cli.sysdump import app as sysdump

app = typer.Typer(
    name="ciliate",
    help="Identity-aware networking, security and observability: what the cluster does, and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ciliate {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    context: typer.Context,
    sandbox_name: Annotated[
        str,
        typer.Option(
            "--sandbox", "-s", envvar="CILIATE_SANDBOX", help="the sandbox to ask (default: the one that runs)"
        ),
    ] = "",
    relay: Annotated[str, typer.Option(envvar="CILIATE_RELAY", help="relay, host:port or unix:///path")] = "",
    identity: Annotated[str, typer.Option(envvar="CILIATE_IDENTITY", help="identity service")] = "",
    agent: Annotated[str, typer.Option(envvar="CILIATE_AGENT", help="agent socket, unix:///path")] = "",
    tls_ca: Annotated[str, typer.Option(envvar="CILIATE_TLS_CA", help="authority of the servers (PEM)")] = "",
    tls_cert: Annotated[str, typer.Option(envvar="CILIATE_TLS_CERT", help="certificate to show (PEM)")] = "",
    tls_key: Annotated[str, typer.Option(envvar="CILIATE_TLS_KEY", help="its private key (PEM)")] = "",
    insecure: Annotated[bool, typer.Option(help="speak plaintext; for tests only")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Options that say whom to ask."""
    del version
    context.obj = Settings(sandbox_name, relay, identity, agent, tls_ca, tls_cert, tls_key, insecure)


app.command("status")(status.status)
app.command("preflight")(preflight.preflight)
app.command("observe")(observe.command)
app.add_typer(history.app, name="flows")
app.add_typer(inspection.endpoints, name="endpoint")
app.add_typer(identity_commands.identities, name="identity")
app.add_typer(policy.app, name="policy")
app.add_typer(service.services, name="service")
app.add_typer(egress.app, name="egress")
app.add_typer(fqdn.app, name="fqdn")
app.add_typer(bpf.app, name="bpf")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(connectivity.app, name="connectivity")
app.add_typer(config.app, name="config")
app.command("install")(install.install)
app.command("upgrade")(install.upgrade)
app.command("uninstall")(install.uninstall)
app.command("sysdump")(sysdump.sysdump)
