"""Network interface over which the workers of a group speak to one another. Light to import, as `entry` is."""

from __future__ import annotations

import ipaddress
import os


def use_interface_of_node() -> None:
    """Let Gloo and NCCL of this worker use the interface that has Ray's own address of this node.

    Gloo would take the address that the host's name stands for. With Ubuntu's default that is 127.0.1.1, and no
    other host reaches it. NCCL would take the first interface that it finds. Variables that are set stay.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is None:
        return
    for variable, value in (("GLOO_SOCKET_IFNAME", name), ("NCCL_SOCKET_IFNAME", f"={name}")):
        if not os.environ.get(variable):
            os.environ[variable] = value


def interface_of(address: str) -> str | None:
    """Return the name of this host's network interface with an address. None: no interface has it.

    The addresses of loopback are one interface, though it lists 127.0.0.1 alone.
    """
    import psutil

    wanted = ipaddress.ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            have = _parsed(one.address)
            if have == wanted or (have is not None and have.is_loopback and wanted.is_loopback):
                return name
    return None


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])  # an address of IPv6 may end with %INTERFACE
    except ValueError:  # a hardware address
        return None
