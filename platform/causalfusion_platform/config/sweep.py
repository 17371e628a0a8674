"""A search over keys of an experiment: what is tried, in which manner, and when a trial is ended early."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .section import Section

Mode = Literal["max", "min"]


class Distribution(Section):
    """Where the values of a key are drawn from; exactly one of these is given."""

    uniform: tuple[float, float] | None = None
    """Every number between two, alike."""
    log_uniform: tuple[float, float] | None = None
    """Every order of magnitude between two positive numbers, alike: learning rates."""
    integers: tuple[int, int] | None = None
    """Every whole number from the first to the last, alike."""
    choice: list[Any] | None = None
    """One of these."""

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
    """Asynchronous successive halving (Li et al. 2020): at each rung the worse trials end."""

    grace_images: int = Field(ge=1)
    """The first rung: images that every trial sees."""
    reduction_factor: float = Field(3.0, gt=1)
    """At each rung one of so many trials goes on; the next rung is as many times as far."""


class PopulationConfig(Section):
    """Population-based training (Jaderberg et al. 2017): the worst trials go on from the best ones' weights."""

    every_images: int = Field(ge=1)
    """Images between two comparisons; each member has a checkpoint and a measurement there."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the population that is replaced, by copies of as many of the best."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """`pbt`: probability that a key of a copy is drawn anew; otherwise it is multiplied by 0.8 or 1.2."""


class SweepConfig(Section):
    """A Ray Tune search over keys of an experiment. Give `grid`, or `space` with `num_trials`."""

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key → values; every combination is one trial."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """Dotted key → where its values are drawn from."""
    search: Literal["random", "optuna"] = "random"
    """How `space` is searched: at random, or by Optuna's TPE sampler, which learns from the trials before."""
    num_trials: int | None = Field(None, ge=1)
    """Points of `space` to try; for `pbt` and `pb2` the size of the population."""
    seeds: tuple[int, ...] = ()
    """Each combination is trained once with each of these as `seed`; empty: once, with the experiment's own."""
    metric: str = "class_accuracy"
    """A number of each trial's summary.json, by which trials are ranked."""
    mode: Mode = "max"
    """Whether more or less of the metric is better."""
    objectives: dict[str, Mode] = Field(default_factory=dict)
    """Several metrics at once, in place of `metric`: Optuna looks for trials that no other beats in all of them."""
    asha: AshaConfig | None = None
    """End trials early that are behind."""
    pbt: PopulationConfig | None = None
    """Population-based training: `space` says which keys change on the way."""
    pb2: PopulationConfig | None = None
    """The same with a Gaussian process that chooses the new values (Parker-Holder et al. 2020)."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; null: as many as fit on the cluster."""

    @property
    def population(self) -> PopulationConfig | None:
        """Settings of `pbt` or `pb2`."""
        return self.pbt or self.pb2

    @property
    def measures_on_the_way(self) -> bool:
        """Whether trials are compared before their end."""
        return self.asha is not None or self.population is not None

    @property
    def targets(self) -> dict[str, Mode]:
        """Metric → whether more or less of it is better; the first one ranks the table."""
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
