"""Searches a strategy's parameters: one item is a trial, a backtest over all symbols with some values of them."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nodes import backtesting
from nodes.executors.bars import DATES, FREQ, STORE, OverBars, parts, range_of, source_param
from nodes.executors.base import Column, Dataset, Item, ItemFailed, Param, Rows, Variant, shown
from nodes.optimizing import reductions, searching, terms
from nodes.optimizing import space as spaces
from nodes.optimizing.searching import Search, check_trial
from nodes.optimizing.terms import Terms
from nodes.protocol import FieldError

if TYPE_CHECKING:
    from nodes.optimizing.scoring import Bench, Verdict

MOST_SYMBOLS = 1_000
METRICS = ("total_return", "cagr", "volatility", "sharpe", "sortino", "max_drawdown", "win_rate", "exposure", "trades")
"""Those with a column of their own."""
STUDY = Param("study", "string", "", "A name to find the trials by; without it, the strategy's.")
BENCHES = 2
"""So many runs' bars a worker process keeps."""

_benches: OrderedDict[tuple[str, ...], Bench] = OrderedDict()


class Optimization(OverBars):
    """A trial's row says what it was worth by the objective, in the part that is scored, and beside that in sample and
    out of sample."""

    type = "optimization"
    title = "Searches a strategy's parameters, by trial"
    item_form = 'A trial: {"key": "trial-00000", "trial": 0, "params": {"fast": 5}}.'
    items_optional = True
    source = source_param(store=True)
    params = (
        source,
        FREQ,
        *DATES,
        Param("symbols", "list", help="Symbols that each trial is tested on.", of="string"),
        Param("strategy", "string", help="Whose parameters are searched: " + ", ".join(backtesting.strategies()) + "."),
        Param("strategy_params", "object", {}, "The strategy's parameters that do not vary."),
        Param(
            "space",
            "object",
            help='What varies: {"fast": {"low": 5, "high": 50, "step": 5}, "kind": ["sma", "ema"]}; ranges may be log.',
        ),
        Param("search", "string", "tpe", "How the space is gone through.", choices=searching.METHODS),
        Param(
            "trials",
            "integer",
            None,
            f"How many; {searching.DEFAULT_TRIALS} without it, in a grid all.",
            minimum=1,
            maximum=searching.MOST_TRIALS,
        ),
        Param("seed", "integer", 0, "The same seed gives the same trials.", minimum=0, maximum=2**32 - 1),
        Param(
            "parallel",
            "integer",
            16,
            "tpe: trials under way at a time; each learns from all but so many before it.",
            minimum=1,
            maximum=1_000,
        ),
        *terms.PARAMS,
        STUDY,
        *backtesting.PARAMS,
    )
    dataset = Dataset(
        table="optimization",
        columns=(
            Column("study", "string"),
            Column("setup", "string"),
            Column("trial", "int64"),
            Column("strategy", "string"),
            Column("params", "json"),
            Column("strategy_params", "json"),
            Column("objective", "string"),
            Column("direction", "string"),
            Column("value", "float64"),
            Column("feasible", "bool"),
            Column("violation", "float64"),
            Column("in_sample", "float64"),
            Column("out_of_sample", "float64"),
            *(Column(name, "float64") for name in METRICS),
            Column("symbols", "json"),
            Column("folds", "json"),
        ),
        key=("study", "setup", "trial"),
        views=reductions.VIEWS,
    )
    reductions = reductions.REDUCTIONS

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.strategy = backtesting.strategy(params["strategy"])
        self.terms = Terms.of(params)
        self._bench: Bench | None = None

    @classmethod
    def variants(cls) -> Sequence[Variant]:
        return [*super().variants(), *backtesting.variants()]

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check(params)
        checked["symbols"] = _symbols(checked["symbols"])
        checked["direction"] = terms.direction_of(checked)
        Terms.of(checked)
        checked["space"] = spaces.plain(Search.of(checked).space)
        if len(checked["study"]) > 200:
            raise FieldError("params.study", f"has {len(checked['study'])} characters; at most 200 are allowed")
        return checked

    @classmethod
    def merged(cls, settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings for a strategy's parameters say nothing to a run with another strategy."""
        if params.get("strategy") not in (None, settings.get("strategy")):
            settings = {name: each for name, each in settings.items() if name not in ("space", "strategy_params")}
        return super().merged(settings, params)

    @classmethod
    def check_item(cls, item: Item) -> None:
        check_trial(item)

    @classmethod
    def begin(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[Item]:
        """The trials that need no result of another one; or ``items``, where somebody names the trials."""
        search = Search.of(params)
        if not items:
            return _first(search)
        named = set()
        for number, item in enumerate(items):
            try:
                given = check_trial(item)
                search.strategy.check({**search.fixed, **given["params"]}, f"items[{number}].params")
            except ValueError as error:
                raise FieldError(f"items[{number}]", str(error)) from None
            if given["trial"] in named:
                raise FieldError(f"items[{number}]", f"there is a trial {given['trial']} already")
            named.add(given["trial"])
        return list(items)

    @classmethod
    def expected(cls, items: Sequence[Item], params: Mapping[str, Any]) -> int | None:
        """``items``: those it begins with. Where somebody has named the trials there are no others."""
        if params["search"] != "tpe":
            return None
        search = Search.of(params)
        return search.total() if list(items) == _first(search) else None

    @classmethod
    def symbols_of(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[str]:
        return list(params["symbols"])

    def run(self, item: Item) -> Rows:
        try:
            trial = check_trial(item)
            params = self.strategy.check({**self.given["strategy_params"], **trial["params"]}, "params")
        except (FieldError, ValueError) as error:
            raise ItemFailed(str(error)) from None
        bench = self._bars()
        try:
            verdict = bench.judge(self.strategy, params)
        except ItemFailed:
            raise
        except Exception as error:  # whatever a strategy that is not ours raises: it would again
            traceback.print_exc()
            raise ItemFailed(f"trial {trial['trial']}, {shown(params)}: {type(error).__name__}: {error}") from error
        return [self._row(trial, params, verdict)]

    def _row(self, trial: Mapping[str, Any], params: Mapping[str, Any], verdict: Verdict) -> tuple[Any, ...]:
        given = self.given
        return (
            given["study"] or given["strategy"],
            setup_of(given),
            trial["trial"],
            given["strategy"],
            json.dumps(trial["params"]),
            json.dumps(params),
            given["objective"],
            given["direction"],
            verdict.value,
            verdict.feasible,
            verdict.violation,
            verdict.in_sample,
            verdict.out_of_sample,
            *(verdict.metrics[name] for name in METRICS),
            json.dumps(verdict.symbols),
            json.dumps(verdict.folds),
        )

    def _bars(self) -> Bench:
        """Bars of all symbols: read once for a shard, and once in this process for the shards of a run."""
        if self._bench is None:
            key = self._known_by()
            self._bench = _benches.get(key) if key else None
            if self._bench is None:
                self._bench = self._read()
            if key:
                _benches[key] = self._bench
                _benches.move_to_end(key)
                while len(_benches) > BENCHES:
                    _benches.popitem(last=False)
        return self._bench

    def _known_by(self) -> tuple[str, ...]:
        """What tells the bars of this shard from others', or nothing where that is not known."""
        if self.given["source"] != STORE:
            return (setup_of(self.given), str(self.run_id)) if self.run_id else ()
        try:
            with open(self.input, "rb") as file:
                return setup_of(self.given), hashlib.file_digest(file, "blake2b").hexdigest()
        except OSError:
            return ()  # the source will say what is missing

    def _read(self) -> Bench:
        from nodes.optimizing.scoring import Bench

        _, start, end = range_of(self.given["symbols"][0], self.given)
        # Earlier bars warm up a strategy's averages, as they do in a backtest.
        return Bench({symbol: self.bars(symbol, None, end) for symbol in self.given["symbols"]}, self.terms, start)


def _first(search: Search) -> list[Item]:
    return [searching.trial(number, params) for number, params in enumerate(search.first())]


def setup_of(params: Mapping[str, Any]) -> str:
    """What tells a search from others by the same name: 12 digits of the hash of all that decides on its trials."""
    rest = {name: value for name, value in params.items() if name != "study"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]


def _symbols(given: Sequence[str]) -> list[str]:
    if not 0 < len(given) <= MOST_SYMBOLS:
        raise FieldError("params.symbols", f"has {len(given)} symbols; 1 to {MOST_SYMBOLS} are allowed")
    seen: dict[str, None] = {}
    for number, symbol in enumerate(given):
        try:
            parts(symbol)
        except ValueError as error:
            raise FieldError(f"params.symbols[{number}]", str(error)) from None
        if symbol in seen:
            raise FieldError(f"params.symbols[{number}]", f"{shown(symbol)} is there twice")
        seen[symbol] = None
    return list(seen)
