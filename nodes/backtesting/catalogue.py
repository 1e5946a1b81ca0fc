"""The strategies by name, with their parameters. What they compute is in ``rules``, imported when they do.

To add one: a function in ``rules`` and its entry in _SHIPPED. A strategy of one's own needs neither: its dotted path
(``package.module:callable``) is its name, if the settings' allow-list has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nodes import surroundings
from nodes.executors.base import Param, Variant, check_params, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

FIELD = "params.strategy"
PARAMS_FIELD = "params.strategy_params"


@dataclass(frozen=True)
class Strategy:
    """``rule``: dotted path of (bars, params) -> target exposures in [-1, 1], one for each bar, each made of that bar
    and those before it. ``params``: what it can be told; None: anything, for a rule that is not ours."""

    name: str
    title: str
    rule: str
    declared: tuple[Param, ...] | None = ()
    longest: tuple[str, ...] = ()
    """Params that are numbers of bars; the largest of them decides how many bars there must be at least."""
    order: tuple[tuple[str, str, bool], ...] = ()
    """Pairs of params of which the first must be the smaller; True: or equal."""

    @property
    def params(self) -> tuple[Param, ...]:
        return self.declared or ()

    def check(self, given: Mapping[str, Any], field: str = PARAMS_FIELD) -> dict[str, Any]:
        """The checked parameters, defaults filled in. Raises FieldError on ``<field>.<name>``."""
        if not isinstance(given, Mapping):
            raise FieldError(field, f"{shown(given)} is not an object")
        if self.declared is None:
            return dict(given)
        try:
            checked = check_params(self.declared, given)
        except FieldError as error:
            raise FieldError(field + error.field.removeprefix("params"), error.message) from None
        for less, more, equal in self.order:
            if checked[less] > checked[more] or (checked[less] == checked[more] and not equal):
                allowed = "at most" if equal else "less than"
                raise FieldError(f"{field}.{less}", f"{checked[less]} is not {allowed} {more}, {checked[more]}")
        return checked

    def least_bars(self, params: Mapping[str, Any]) -> int:
        """With fewer bars than this there can be no trade. ``params``: checked ones."""
        return max((int(params[name]) for name in self.longest), default=0) + 1

    def positions(self, bars: pd.DataFrame, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """Target exposures, one for each of ``bars``, by checked ``params``; negative ones are shorts.

        Raises ValueError where a rule that is not ours gives anything else, ImportError where it cannot be found, and
        whatever it raises itself.
        """
        import numpy as np

        rule = _found(self.rule)
        # A copy, so that a rule that is not ours cannot change what its orders are filled at.
        positions = np.asarray(rule(bars if self.declared is not None else bars.copy(), params), dtype=np.float64)
        if positions.shape != (len(bars),):
            raise ValueError(f"{self.name} gave {shown(positions.shape)} exposures for {len(bars)} bars")
        return positions


_SHIPPED = {
    strategy.name: strategy
    for strategy in (
        Strategy("buy_and_hold", "Buys and keeps", "nodes.backtesting.rules:buy_and_hold"),
        Strategy(
            "ma_cross",
            "Long while the fast moving average of the close is above the slow one, short while below",
            "nodes.backtesting.rules:ma_cross",
            (
                Param("fast", "integer", 10, "Bars of the fast average.", minimum=1, maximum=1_000),
                Param("slow", "integer", 30, "Bars of the slow average.", minimum=2, maximum=2_000),
                Param("kind", "string", "sma", "Simple or exponential average.", choices=("sma", "ema")),
            ),
            longest=("slow",),
            order=(("fast", "slow", False),),
        ),
        Strategy(
            "rsi_reversion",
            "Long from the RSI's fall below `lower` on, short from its rise above `upper` on",
            "nodes.backtesting.rules:rsi_reversion",
            (
                Param("period", "integer", 14, "Bars of the RSI (Wilder's).", minimum=2, maximum=1_000),
                Param("lower", "number", 30.0, "Oversold below this.", minimum=0, maximum=100),
                Param("upper", "number", 70.0, "Overbought above this.", minimum=0, maximum=100),
            ),
            longest=("period",),
            order=(("lower", "upper", False),),
        ),
        Strategy(
            "breakout",
            "Long from a close above the highest high of `entry` bars, until one below the lowest low of `exit` bars; "
            "short the other way round (Donchian channels)",
            "nodes.backtesting.rules:breakout",
            (
                Param("entry", "integer", 20, "Bars of the channel that opens.", minimum=2, maximum=2_000),
                Param("exit", "integer", 10, "Bars of the channel that closes; not more.", minimum=1, maximum=2_000),
            ),
            longest=("entry",),
            # With a longer exit channel both a long and a short could be open at once.
            order=(("exit", "entry", True),),
        ),
    )
}


def variants() -> list[Variant]:
    """What ``strategy_params`` may hold, by strategy."""
    shipped = [strategy(name) for name in strategies()]
    return [Variant("strategy", each.name, each.params, within="strategy_params") for each in shipped]


def strategies() -> list[str]:
    """Names of the strategies that come with this package."""
    return sorted(_SHIPPED)


def strategy(name: str) -> Strategy:
    """The strategy called ``name``, or the one at the dotted path ``name``.

    Raises FieldError on ``params.strategy`` for an unknown one, and for a path that the allow-list of this machine
    lacks.
    """
    if name in _SHIPPED:
        return _SHIPPED[name]
    known = ", ".join(strategies())
    if ":" not in name:
        raise FieldError(FIELD, f"{shown(name)} is not a strategy; known are: {known}, or package.module:callable")
    if name not in surroundings.current().custom.values():
        raise FieldError(FIELD, f"{shown(name)} is not among the callables that the setting custom allows on this node")
    return Strategy(name, name, name, declared=None)


def _found(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except AttributeError:
        raise ImportError(f"{module} has no {name}") from None
    return found
