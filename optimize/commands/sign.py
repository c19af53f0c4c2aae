"""`optimize sign`: vouch for a bundle with a key, or check who did."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from optimize.commands.console import console, fail

MAX_KEY_BYTES = 64 * 2**10
PASSWORD = "OPTIMIZE_KEY_PASSWORD"


def sign(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle.")],
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Private Ed25519 key in PEM; signs the bundle.", metavar="PEM"),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", help="Public key in PEM; checks that it signed.", metavar="PEM"
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar=PASSWORD, help="Of the private key, if it has one.", show_envvar=True),
    ] = None,
) -> None:
    """Sign a bundle, or check its signature; every file is verified either way.

    Make a pair of keys with `openssl genpkey -algorithm ed25519 -out key.pem` and
    `openssl pkey -in key.pem -pubout -out key.pub.pem`.
    """
    if (key is None) == (public_key is None):
        fail("found both or none of --key and --public-key, expected one", 2)
    if key is not None:
        from optimize.runtime.signing import sign_bundle

        secret = None if password is None else password.encode()
        made = sign_bundle(bundle, _content(key), secret)
        console().print(Text(f"{bundle}: signed by {made}"))
    elif public_key is not None:
        from optimize.runtime.bundle import open_bundle

        opened = open_bundle(bundle, target="onnx", public_key=_content(public_key))
        console().print(Text(f"{bundle}: {opened.provenance}"))


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)
