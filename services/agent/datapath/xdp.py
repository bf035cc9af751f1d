"""XDP on the node's devices: Services for the outside, before the kernel makes anything of a packet.

Each device has a link pinned under `<root>/links`: an agent that comes back finds it and replaces the program in it.
Where XDP is not to be had nothing is lost, the tc programs do the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path

from services.agent.datapath import syscall
from services.agent.datapath.units import AttachType, Kind, ProgramType
from services.common.errors import CiliateError, Denied, Internal, NotFound, Unavailable

PROGRAM = "xdp_netdev"
_KIND = Kind(ProgramType.XDP, AttachType.XDP)


class Mode(StrEnum):
    """Where the program runs."""

    OFF = "off"
    AUTO = "auto"
    """In the driver of physical devices; virtual ones may carry checksums that are not made yet."""
    NATIVE = "native"
    """In the driver."""
    GENERIC = "generic"
    """Behind the driver: for trying, it is slower than tc."""


_FLAGS: Mapping[Mode, int] = {Mode.AUTO: 4, Mode.NATIVE: 4, Mode.GENERIC: 2}
"""XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE."""


class XdpHooks:
    """The program of `root` on devices of the current network namespace."""

    def __init__(self, root: Path, mode: Mode) -> None:
        self._program, self._links, self._mode = root / "progs" / PROGRAM, root / "links", mode
        self.refused: dict[int, str] = {}
        """Device -> why it has none, of those that were to have one."""

    def attach(self, ifindexes: Collection[int]) -> list[int]:
        """Put or replace it where it can be; devices that are not named lose theirs. Returns where it is now.

        Raises `Unavailable` when a device must have it (mode native or generic) and cannot.
        """
        wanted = [index for index in ifindexes if self._wants(index)]
        self.refused.clear()
        self.detach(keep=wanted)
        for ifindex in wanted:
            try:
                self._put(ifindex)
            except CiliateError as error:
                if self._mode is not Mode.AUTO:
                    raise
                self.refused[ifindex] = str(error)
        return [index for index in wanted if index not in self.refused]

    def detach(self, keep: Collection[int] = ()) -> None:
        """Take it from every device but those to keep."""
        if self._links.is_dir():
            for pin in self._links.glob("xdp_*"):
                if pin.name not in {self._name(index) for index in keep}:
                    pin.unlink(missing_ok=True)

    def _name(self, ifindex: int) -> str:
        return f"xdp_{ifindex}_{self._mode}"

    def _wants(self, ifindex: int) -> bool:
        return self._mode is not Mode.OFF and (self._mode is not Mode.AUTO or _is_physical(ifindex))

    def _put(self, ifindex: int) -> None:
        if not self._program.exists():
            raise Unavailable(f"xdp: this kernel refused {PROGRAM}; set it to off")
        pin = self._links / self._name(ifindex)
        try:
            with syscall.opened(self._program) as program:
                if not _replaced(pin, program):
                    self._create(pin, program, ifindex)
        except OSError as error:
            raise _error(error, ifindex) from error

    def _create(self, pin: Path, program: int, ifindex: int) -> None:
        self._links.mkdir(parents=True, exist_ok=True)
        link = syscall.link_create(program, ifindex, _KIND, _FLAGS[self._mode])
        try:
            syscall.obj_pin(link, pin)
        finally:
            os.close(link)


def _replaced(pin: Path, program: int) -> bool:
    """The pinned link runs the present program now; False where there is none, or its device is gone."""
    if not pin.exists():
        return False
    with syscall.opened(pin) as link:
        try:
            syscall.link_update(link, program)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOLINK, errno.ENODEV):
                raise
            pin.unlink()
            return False


def _is_physical(ifindex: int) -> bool:
    """Whether there is hardware behind a device: only such a one hands over complete packets for certain."""
    for device in Path("/sys/class/net").iterdir():
        try:
            if int((device / "ifindex").read_text()) == ifindex:
                return (device / "device").exists()
        except OSError:
            continue
    return False


def _error(error: OSError, ifindex: int) -> CiliateError:
    what = f"xdp: interface {ifindex}: {error.strerror}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return Denied(f"{what}; the agent needs root")
    if error.errno == errno.ENODEV:
        return NotFound(what)
    if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.EBUSY, errno.E2BIG):
        return Unavailable(f"{what}; the driver does not take it like this, set xdp to off")
    return Internal(what)
