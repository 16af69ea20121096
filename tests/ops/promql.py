"""What a query of Prometheus asks for, read from its syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    Matcher,
    MatchOp,
    StringLiteral,
    VectorSelector,
)

from tests.telemetry.snapshots import snapshot
from trio_odin.telemetry.metrics import render

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


def faults(query: str, known: Known) -> list[str]:
    """What a query names that does not exist: metrics, labels, values of labels."""
    return [*_faults(promql_parser.parse(query), known)]


def labels_of(query: str, known: Known) -> set[str]:
    """The labels that the answer to a query may have."""
    return _labels(promql_parser.parse(query), known)


def _labels(tree: Expr, known: Known) -> set[str]:
    """Those of all that it selects, and those that it makes."""
    found = {label for selector in selectors(tree) for label in known.get(selector.name or "", ())}

    def visit(node: Expr) -> None:
        if isinstance(node, Call) and node.func.name == "label_replace":
            made = node.args[1]
            assert isinstance(made, StringLiteral)
            found.add(made.val)

    promql_parser.walk(tree, visit)
    return found


def _faults(tree: Expr, known: Known) -> Iterator[str]:
    missing = _matched_labels(tree) - _labels(tree, known)
    yield from (f"label {name}" for name in sorted(missing))
    for selector in selectors(tree):
        name = selector.name or ""
        if name not in known:
            yield f"metric {name}"
            continue
        for matcher in selector.matchers.matchers:
            yield from _faults_of_matcher(name, matcher, known[name])


def _faults_of_matcher(
    metric: str, matcher: Matcher, labels: Mapping[str, set[str] | None]
) -> Iterator[str]:
    if matcher.name not in labels:
        yield f"label {matcher.name} of {metric}"
        return
    is_pattern = matcher.op in (MatchOp.Re, MatchOp.NotRe)
    wanted = set(re.split(r"\|", matcher.value)) if is_pattern else {matcher.value}
    values = labels[matcher.name]
    if values is not None:
        yield from (f"{metric}{{{matcher.name}={value}}}" for value in sorted(wanted - values))


def selectors(tree: Expr) -> list[VectorSelector]:
    """All of them, those with a range too."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(tree, visit)
    return found


def metrics_of(query: str) -> set[str]:
    """The names of the metrics that a query reads."""
    return {selector.name for selector in selectors(promql_parser.parse(query)) if selector.name}


def _matched_labels(tree: Expr) -> set[str]:
    """Labels that are aggregated by or joined on."""
    found: set[str] = set()

    def visit(node: Expr) -> None:
        if isinstance(node, AggregateExpr) and node.modifier:
            found.update(node.modifier.labels)
        if isinstance(node, BinaryExpr) and node.modifier and node.modifier.matching:
            found.update(node.modifier.matching.labels)

    promql_parser.walk(tree, visit)
    return found
