"""What a query of Prometheus names that does not exist, by the parser of promql-parser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    StringLiteral,
    VectorSelector,
)

from tests.telemetry.snapshots import snapshot
from trio_odin.telemetry.exposition import render

# Metric, then label, then the values that it can have; None: any.
Known: TypeAlias = Mapping[str, Mapping[str, set[str] | None]]

_OF_PROMETHEUS: Mapping[str, set[str] | None] = {"job": {"ws"}, "instance": None}


def known_metrics() -> Known:
    """What /metrics shows, with every label value that it shows of an idle server, and `up`."""
    known: dict[str, dict[str, set[str] | None]] = {"up": {**_OF_PROMETHEUS}}
    for family in text_string_to_metric_families(render(snapshot()).decode()):
        for sample in family.samples:
            labels = known.setdefault(sample.name, {**_OF_PROMETHEUS})
            for name, value in sample.labels.items():
                values = labels.setdefault(name, set())
                if values is not None:
                    values.add(value)
    return known


def selectors(tree: Expr) -> list[VectorSelector]:
    """All that a query selects, with a range or without."""
    return [node for node in _nodes(tree) if isinstance(node, VectorSelector)]


def metrics_of(query: str) -> set[str]:
    """The names of the metrics that a query reads."""
    return {selector.name for selector in selectors(promql_parser.parse(query)) if selector.name}


def labels_of(query: str, known: Known) -> set[str]:
    """The labels that the answer to a query may have."""
    found = {label for name in metrics_of(query) for label in known.get(name, ())}
    for node in _nodes(promql_parser.parse(query)):
        if isinstance(node, Call) and node.func.name == "label_replace":
            made = node.args[1]
            assert isinstance(made, StringLiteral)
            found.add(made.val)
    return found


def faults(query: str, known: Known) -> list[str]:
    """What a query names that does not exist: metrics, labels, values of labels."""
    tree = promql_parser.parse(query)
    by: set[str] = set()  # labels that are aggregated by or joined on
    for node in _nodes(tree):
        if isinstance(node, AggregateExpr) and node.modifier:
            by.update(node.modifier.labels)
        if isinstance(node, BinaryExpr) and node.modifier and node.modifier.matching:
            by.update(node.modifier.matching.labels)
    found = [f"label {name}" for name in sorted(by - labels_of(query, known))]
    for selector in selectors(tree):
        name = selector.name or ""
        if name not in known:
            found.append(f"metric {name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in known[name]:
                found.append(f"label {matcher.name} of {name}")
            elif (values := known[name][matcher.name]) is not None:
                # A pattern is some values, one or the other.
                wrong = {*matcher.value.split("|")} - values
                found += [f"{name}{{{matcher.name}={value}}}" for value in sorted(wrong)]
    return found


def _nodes(tree: Expr) -> list[Expr]:
    found: list[Expr] = []
    promql_parser.walk(tree, found.append)
    return found
