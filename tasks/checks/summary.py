"""Summarize Great Expectations' results: table rows, check results, and one sentence per violation."""

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.contract import DatasetContract
from schemas.references import CheckResult
from tasks.checks.measurements import Measurement, join_first

_PROBLEMS = 10
_PLACES = 5


def summarize(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a validation.

    rows: one per expectation. checks: the fields of a `CheckResult`, one per bound of a check. broken, warnings: one
    sentence per expectation that failed, by severity. problems: the columns that failed one, ten at most.
    """
    facts: dict[str, list[Any]] = {name: [] for name in ("rows", "checks", "broken", "warnings", "problems")}
    failed: set[str] = set()
    warnings: list[tuple[str, str]] = []
    for profile, verdict in result.items():
        for entry in verdict["results"]:
            row = _table_row(profile, entry)
            facts["rows"].append(row)
            if entry["expectation_config"]["meta"]["check"]:
                fields = {name: row[name] for name in ("figure", "bound", "severity", "result")}
                detail = entry["expectation_config"].get("notes") or ""
                facts["checks"].append({"check": row["of"], **fields, "says": detail})
            if row["result"] == "warned":
                warnings.append((row["of"], _sentence(entry)))
            elif row["result"] == "broken":
                failed.add(row["of"])
                facts["broken"].append(_sentence(entry))
                # Line 0, because a profile knows no lines.
                facts["problems"] += [
                    {"line": 0, "column": name, "value": value, "reason": f"expected {subject}{expected}"}
                    for name, subject, value, expected in _violations(entry)
                    if profile == "columns"
                ]
    # A check that failed does not need its warning as well.
    facts["warnings"] = [sentence for subject, sentence in warnings if subject not in failed]
    facts["problems"] = facts["problems"][:_PROBLEMS]
    return facts


def _table_row(profile: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    config = entry["expectation_config"]
    meta = config["meta"]
    failed = "warned" if config["severity"] == "warning" else "broken"
    return {
        "profile": profile,
        "expectation": config["type"],
        "of": meta["subject"],
        "figure": entry["result"].get("observed_value"),
        "bound": f"{meta['relation']} {meta['expected']}",
        "severity": config["severity"],
        "result": "met" if entry["success"] else failed,
    }


def _violations(entry: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return name, subject, value and expected value of every row of the profile that failed.

    The subject is empty if it is the name itself.
    """
    meta, result = entry["expectation_config"]["meta"], entry["result"]
    relation = "" if meta["relation"] == "==" else f"{meta['relation']} "
    (name,) = result.get("unexpected_index_column_names") or ("",)
    subject = "" if meta["subject"] == name else f"{meta['subject']} "
    return [
        (row[name], subject, str(row[meta["subject"]]), f"{relation}{row.get(meta['expected'], meta['expected'])}")
        for row in result.get("unexpected_index_list") or []
    ]


def _sentence(entry: Mapping[str, Any]) -> str:
    """Return what was expected and what was received."""
    config, result = entry["expectation_config"], entry["result"]
    meta = config["meta"]
    # The exception info is that of the expectation, or one per metric that failed.
    for info in (entry["exception_info"], *entry["exception_info"].values()):
        if isinstance(info, dict) and info.get("raised_exception"):
            return f"{config['type']} of {meta['subject']} could not be evaluated: {info['exception_message']}"
    if meta["check"]:
        bound = f"{meta['relation']} {meta['expected']}"
        return check_sentence(meta["subject"], config.get("notes") or "", bound, result["observed_value"])
    if missing := result.get("partial_missing_list"):
        return f"{config['description']}; missing {', '.join(missing)}"
    if violations := _violations(entry):
        places = [
            f"{name} ({f'{subject}{value}, ' if subject else ''}expected {expected})"
            for name, subject, value, expected in violations
        ]
        return f"{config['description']}; violated by {join_first(places, _PLACES)}"
    expected = f"{meta['relation']} {meta['expected']}"
    return f"{config['description']}; expected {expected}, received {result.get('observed_value')}"


def check_sentence(name: str, detail: str, bound: str, value: float) -> str:
    """Return what a check expected and received. bound: such as "<= 0.1"."""
    relation, expected = bound.split()
    limit = "least" if relation == ">=" else "most"
    return f"{name}: {f'{detail}; ' if detail else ''}expected at {limit} {expected}, received {value:.3g}"


def check_results(measured: Mapping[str, Measurement], contract: DatasetContract) -> list[CheckResult]:
    """Return one result per bound of each check that was measured, in the order of the contract."""
    return [
        CheckResult(
            check=check.name,
            figure=measured[check.name].value,
            bound=f"{'>=' if check.low_is_bad else '<='} {bound:g}",
            severity=severity,
            result="warned" if beyond(measured[check.name].value) else "met",
            says=measured[check.name].detail,
        )
        for check in contract.checks
        if check.name in measured
        for bound, severity, beyond in ((check.warn, "warning", check.warns), (check.fail, "critical", check.fails))
        if bound is not None
    ]


def sentences(results: Iterable[CheckResult]) -> list[str]:
    """Return one sentence per check that warned, about the outermost bound that its value is beyond."""
    beyond = {result.check: result for result in results if result.result == "warned"}
    return [check_sentence(result.check, result.says, result.bound, result.figure) for result in beyond.values()]
