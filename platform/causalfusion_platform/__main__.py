"""`python -m causalfusion_platform` is the `causalfusion` command."""

from .cli.main import main

main()
