"""Help of a group of commands, with a whole sentence about each."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_UNLIMITED = 10_000  # characters


class WholeHelp(TyperGroup):
    """Group whose help wraps the sentence about each command, which Typer would cut at the terminal's width."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(_UNLIMITED)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
