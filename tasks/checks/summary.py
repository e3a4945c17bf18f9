"""Summarize Great Expectations' results: table rows, check results, and one sentence per violation."""

from collections.abc import Mapping
from typing import Any

from tasks.checks.measurements import join_first

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
        detail = f"{config['notes']}; " if config.get("notes") else ""
        limit = "least" if meta["relation"] == ">=" else "most"
        received = f"{result['observed_value']:.3g}"
        return f"{meta['subject']}: {detail}expected at {limit} {meta['expected']}, received {received}"
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
