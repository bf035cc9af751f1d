"""The outside world's servers, in the switch's namespace: nginx with and without TLS, on every address of the world."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator

from services.common.authority import issue, make_authority
from services.common.errors import Unavailable
from services.sandbox import netns
from services.sandbox.images import FLEET, NGINX_FILES, NGINX_MAIN, WORLD_DOMAIN
from services.sandbox.pod_files import write_files
from services.sandbox.supervisor import Sandbox

START_SECONDS = 10.0
_NGINX = (
    """\
# Written by the sandbox: the outside world.
"""
    + NGINX_MAIN
    + """\
http {{
  log_format requests '$remote_addr $request_method $host $ssl_server_name';
"""
    + NGINX_FILES
    + """\
  server {{
    listen 80;
    listen 443 ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    default_type text/plain;
    location / {{ return 200 "the world\\n"; }}
  }}
}}
"""
)


def fleet() -> list[str]:
    """The addresses of the fleet's names."""
    first, last = (ipaddress.IPv4Address(each) for each in FLEET)
    return [str(ipaddress.IPv4Address(number)) for number in range(int(first), int(last) + 1)]


@contextlib.asynccontextmanager
async def world(sandbox: Sandbox) -> AsyncIterator[str]:
    """Serve while it is open; gives the path of the authority that signed the servers' certificate."""
    directory = sandbox.paths.root / "world"
    make_authority(directory)
    files = issue(directory, "world", hosts=[f"*.{WORLD_DOMAIN}", netns.WORLD4])
    path = directory / "nginx.conf"
    write_files({str(path): _NGINX.format(directory=directory, certificate=files.cert, key=files.key)})
    switch = sandbox.topology.switch
    await netns.in_netns(switch, "\n".join(f"ip addr replace {address}/32 dev lo" for address in fleet()))
    arguments = ["nginx", "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(path)]
    child = await sandbox.processes.start("world", arguments, netns=switch)
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await _answers(sandbox):
                if not child.running:
                    raise child.died()
                await asyncio.sleep(0.05)
        yield files.ca
    except TimeoutError as error:
        raise Unavailable(f"world: nginx did not listen within {START_SECONDS:g} s:\n{child.tail()}") from error
    finally:
        await sandbox.processes.stop(child)


async def _answers(sandbox: Sandbox) -> bool:
    with await sandbox.kubelet.socket_in(sandbox.topology.switch) as probe:
        try:
            await asyncio.get_running_loop().sock_connect(probe, (netns.WORLD4, 443))
        except OSError:
            return False
    return True
