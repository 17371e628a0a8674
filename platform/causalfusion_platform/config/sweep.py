"""Search over keys of an experiment: values, search algorithm, and schedulers that end trials early."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .section import Section

Mode = Literal["max", "min"]


class Distribution(Section):
    """Distribution of the values of a key. Exactly one of these must be given."""

    uniform: tuple[float, float] | None = None
    """Lower and upper bound of a uniform distribution."""
    log_uniform: tuple[float, float] | None = None
    """Lower and upper bound of a log-uniform distribution, both positive, such as for learning rates."""
    integers: tuple[int, int] | None = None
    """First and last integer of a uniform distribution."""
    choice: list[Any] | None = None
    """Allowed values."""

    @model_validator(mode="after")
    def _check(self) -> Distribution:
        given = {name: value for name, value in self if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of uniform, log_uniform, integers and choice, not {len(given)}")
        [(name, value)] = given.items()
        if name == "choice":
            if not value:
                raise ValueError("choice has no values")
        elif not value[0] < value[1]:
            raise ValueError(f"{name} must go from a smaller number to a larger one, got {list(value)}")
        elif name == "log_uniform" and value[0] <= 0:
            raise ValueError(f"log_uniform needs positive numbers, got {list(value)}")
        return self


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al. 2020), which ends the worse trials at each rung."""

    grace_images: int = Field(ge=1)
    """Images that every trial sees before the first rung."""
    reduction_factor: float = Field(3.0, gt=1)
    """Factor by which each rung divides the number of trials and multiplies their images."""


class PopulationConfig(Section):
    """Population-based training (Jaderberg et al. 2017): the worst trials continue from the best ones' weights."""

    every_images: int = Field(ge=1)
    """Images between two comparisons. Each member has a checkpoint and a score there."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the population that is replaced by copies of the best members."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """Probability that `pbt` draws a key of a copy anew. Otherwise it multiplies the value by 0.8 or 1.2."""


class SweepConfig(Section):
    """Ray Tune search over keys of an experiment. Give `grid`, or `space` with `num_trials`."""

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key → values. Every combination is one trial."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """Dotted key → distribution of its values."""
    search: Literal["random", "optuna"] = "random"
    """Search of `space`: at random, or by Optuna's TPE sampler, which learns from earlier trials."""
    num_trials: int | None = Field(None, ge=1)
    """Number of points of `space` to try. For `pbt` and `pb2` it is the size of the population."""
    seeds: tuple[int, ...] = ()
    """Values of `seed`. Each combination is trained once with each. Empty: the experiment's own seed."""
    metric: str = "class_accuracy"
    """Key of summary.json by which trials are ranked."""
    mode: Mode = "max"
    """Direction in which the metric is better."""
    objectives: dict[str, Mode] = Field(default_factory=dict)
    """Several metrics in place of `metric`. Optuna searches for Pareto-optimal trials."""
    floor: float | None = None
    """Worst value of the first metric with which the best trial gets the alias `best` in the model registry.

    null: the task decides. Class accuracy must then be nearer to that of real images than to guessing."""
    asha: AshaConfig | None = None
    """Early end of worse trials."""
    pbt: PopulationConfig | None = None
    """Population-based training. `space` names the keys that change during training."""
    pb2: PopulationConfig | None = None
    """Population-based training with a Gaussian process for new values (Parker-Holder et al. 2020)."""
    max_concurrent: int | None = Field(None, ge=1)
    """Largest number of concurrent trials. null: as many as fit on the cluster.

    A cluster that can grow is asked for room for so many, and with null for one."""

    @property
    def population(self) -> PopulationConfig | None:
        """Settings of `pbt` or `pb2`."""
        return self.pbt or self.pb2

    @property
    def measures_on_the_way(self) -> bool:
        """True if trials are compared before their end."""
        return self.asha is not None or self.population is not None

    @property
    def targets(self) -> dict[str, Mode]:
        """Metric → its better direction. The first metric ranks the table."""
        return self.objectives or {self.metric: self.mode}

    @model_validator(mode="after")
    def _check_space(self) -> SweepConfig:
        if bool(self.grid) == bool(self.space):
            raise ValueError("give either grid, whose every combination is tried, or space with num_trials")
        empty = [key for key, choices in self.grid.items() if not choices]
        if empty:
            raise ValueError(f"grid has no values for {', '.join(empty)}; give some, such as {empty[0]}: [1, 2]")
        if self.space and self.num_trials is None:
            raise ValueError("space needs num_trials: how many points of it are tried")
        if self.grid and (self.num_trials is not None or self.search != "random"):
            raise ValueError("grid tries every combination: leave num_trials and search out, or give space")
        if "seed" in {*self.grid, *self.space} and self.seeds:
            raise ValueError("seed is searched and seeds are given: leave one out")
        if self.seeds and (self.search == "optuna" or self.population):
            raise ValueError("seeds repeat the points of a grid or of a random search; optuna, pbt and pb2 choose")
        return self

    @model_validator(mode="after")
    def _check_manner(self) -> SweepConfig:
        manners = [name for name in ("asha", "pbt", "pb2") if getattr(self, name) is not None]
        if len(manners) > 1:
            raise ValueError(f"{' and '.join(manners)} are given: choose one")
        if self.asha and self.search == "optuna":
            raise ValueError("asha ends trials whose scores optuna would take for finished ones: leave one out")
        if self.objectives and manners:
            raise ValueError(f"{manners[0]} compares trials by one metric: leave objectives out")
        if self.population and (self.grid or self.search == "optuna"):
            raise ValueError(f"{manners[0]} draws its first values from space at random: leave grid and search out")
        if self.pb2 and any(part.choice is not None or part.integers for part in self.space.values()):
            raise ValueError("pb2 searches numbers: its space may hold uniform and log_uniform only")
        return self
