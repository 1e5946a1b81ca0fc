"""What is asked of a run's trials when it has ended, and the views over all of them, in DuckDB's SQL.

A trial that breaks a constraint, or has no value, is not feasible: it is never the best, and ranks behind all that are.
"""

from __future__ import annotations

RANKED = 50
VALUES = 45
"""A parameter with more values than this is left out of ``by_value``."""

_LOSS = "CASE direction WHEN 'minimize' THEN value ELSE -value END"
_WORTH = "value, feasible, violation, in_sample, out_of_sample, total_return, cagr, sharpe, max_drawdown, trades"
# Trials of the same worth in the order of their numbers, so that the answer is the same each time.
_RANKING = f"SELECT trial, params, {_WORTH} FROM rows ORDER BY feasible DESC, violation, {_LOSS} NULLS LAST, trial"

REDUCTIONS = {
    "best": f"""
        SELECT trial, params, strategy, strategy_params, objective, direction, {_WORTH}, folds
        FROM rows WHERE feasible ORDER BY {_LOSS}, trial LIMIT 1
    """,
    "ranking": f"{_RANKING} LIMIT {RANKED}",
    # What searching on a fold's training part alone, and trading its test part with what was best, would have brought.
    "walk_forward": f"""
        SELECT fold, trial, params, in_sample, out_of_sample, train_from, test_from, last FROM (
            SELECT trial, params, direction,
                (each.value ->> 'fold')::BIGINT AS fold,
                (each.value ->> 'violation')::DOUBLE AS violation,
                (each.value ->> 'in_sample')::DOUBLE AS in_sample,
                (each.value ->> 'out_of_sample')::DOUBLE AS out_of_sample,
                each.value ->> 'train_from' AS train_from,
                each.value ->> 'test_from' AS test_from,
                each.value ->> 'last' AS last
            FROM rows, json_each(rows.folds) AS each
        )
        WHERE in_sample IS NOT NULL AND violation = 0
        QUALIFY row_number() OVER (
            PARTITION BY fold ORDER BY {_LOSS.replace("value", "in_sample")}, trial
        ) = 1
        ORDER BY fold
    """,
    "by_value": f"""
        SELECT each.key AS parameter, each.value ->> '$' AS parameter_value, count(*) AS trials,
            count(*) FILTER (feasible) AS feasible, avg(rows.value) AS mean,
            CASE any_value(direction) WHEN 'minimize' THEN min(rows.value) FILTER (feasible)
                ELSE max(rows.value) FILTER (feasible) END AS best
        FROM rows, json_each(rows.params) AS each
        GROUP BY 1, 2
        QUALIFY count(*) OVER (PARTITION BY each.key) <= {VALUES}
        ORDER BY 1, try_cast(parameter_value AS DOUBLE), 2
    """,
}

VIEWS = (
    (
        "optimization_symbols",
        """
        SELECT study, setup, trial, each.key AS symbol,
            (each.value ->> 'value')::DOUBLE AS value,
            (each.value ->> 'in_sample')::DOUBLE AS in_sample,
            (each.value ->> 'out_of_sample')::DOUBLE AS out_of_sample
        FROM {table} AS trials, json_each(trials.symbols) AS each
        """,
    ),
    (
        "optimization_folds",
        """
        SELECT study, setup, trial,
            (each.value ->> 'fold')::BIGINT AS fold,
            each.value ->> 'train_from' AS train_from,
            each.value ->> 'test_from' AS test_from,
            each.value ->> 'last' AS last,
            (each.value ->> 'in_sample')::DOUBLE AS in_sample,
            (each.value ->> 'out_of_sample')::DOUBLE AS out_of_sample
        FROM {table} AS trials, json_each(trials.folds) AS each
        """,
    ),
)
