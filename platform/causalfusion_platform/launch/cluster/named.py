"""Ray clusters by name: the file clusters.yaml, and what --address stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from ...config.errors import UserError
from ...config.section import Section
from ...storage.home import expanded
from .head import Head, find_head, resolve_address

FILE_VARIABLE = "CAUSALFUSION_CLUSTERS"
_EXAMPLE = "lab: {address: 'http://10.0.0.1:8265', token_path: ~/.ray/lab_token}"


class ClusterEntry(Section):
    """Cluster of clusters.yaml."""

    address: str = Field(pattern=r"^https?://[^/?#\s@]+/?$")
    """URL of its Ray dashboard."""
    token_path: Path | None = None
    """File with its token. null: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""


@dataclass(frozen=True)
class Cluster:
    """Running Ray cluster to ask about jobs."""

    name: str
    """Its name in clusters.yaml, or its address."""
    address: str
    """URL of its dashboard."""
    environ: Mapping[str, str] = field(repr=False)
    """Environment in which its token is found."""

    @property
    def head(self) -> Head:
        """Its head, which has answered.

        Raises:
            UserError: nothing answers, a server other than Ray answers, or Ray refuses the token.
        """
        return find_head(self.address, self.environ)


def clusters_file(environ: Mapping[str, str]) -> Path:
    """Return the path of the file of named clusters: $CAUSALFUSION_CLUSTERS, else ~/.causalfusion/clusters.yaml."""
    return expanded(environ.get(FILE_VARIABLE) or "~/.causalfusion/clusters.yaml")


def named_clusters(environ: Mapping[str, str]) -> dict[str, Cluster]:
    """Return the clusters of clusters.yaml by name.

    Raises:
        UserError: the file is not there though the environment names it, or it has faults.
    """
    path = clusters_file(environ)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if environ.get(FILE_VARIABLE):
            raise UserError(f"{FILE_VARIABLE}={path} does not exist\n  write it: {_EXAMPLE}") from None
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{path} is not a mapping of names to clusters\n  such as {_EXAMPLE}")
    return {str(name): _cluster(path, str(name), entry, environ) for name, entry in (tree or {}).items()}


def _cluster(path: Path, name: str, entry: Any, environ: Mapping[str, str]) -> Cluster:
    try:
        found = ClusterEntry.model_validate(entry)
    except ValidationError as error:
        places = [".".join(str(part) for part in (name, *one["loc"])) for one in error.errors(include_input=False)]
        raise UserError(
            f"{path} has wrong values or keys: {', '.join(places)}\n"
            f"  such as {_EXAMPLE}\n  a token is not kept there: token_path names its file, of mode 0600"
        ) from None
    own = dict(environ)
    if found.token_path is not None:
        own.pop("RAY_AUTH_TOKEN", None)
        own["RAY_AUTH_TOKEN_PATH"] = str(expanded(found.token_path))
    return Cluster(name, found.address.rstrip("/"), own)


def find_cluster(option: str | None, environ: Mapping[str, str] = os.environ) -> Cluster:
    """Return the cluster of one command.

    Args:
        option: `--address`, a URL or a name of clusters.yaml. None: see `resolve_address`.
        environ: environment with addresses and tokens.

    Raises:
        UserError: the option is neither, or the environment has a wrong address.
    """
    if option is not None and "://" not in option:
        named = named_clusters(environ)
        if option in named:
            return named[option]
        if ":" not in option:
            raise UserError(
                f"--address {option!r} is neither the URL of a Ray dashboard nor in {clusters_file(environ)}\n"
                f"  names there: {', '.join(named) or 'none'}; a URL is such as http://HOST:8265"
            )
    address = resolve_address(option, environ)
    return Cluster(address, address, environ)


def find_clusters(options: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[Cluster]:
    """Return the clusters of a command about several.

    Args:
        options: those of `--address`. None given: all of clusters.yaml, unless the environment names an address.
        environ: environment with addresses and tokens.

    Raises:
        UserError: see `find_cluster`.
    """
    if options:
        return list({found.address: found for found in (find_cluster(one, environ) for one in options)}.values())
    if not (environ.get("RAY_API_SERVER_ADDRESS") or environ.get("RAY_ADDRESS")) and (
        named := named_clusters(environ)
    ):
        return list(named.values())
    return [find_cluster(None, environ)]
