"""Writes the files of `monitoring/`: the rules for Prometheus, their tests for promtool, and a dashboard for Grafana;
and the tables of `docs/metrics.md`.

`python tools/monitoring.py` writes all of them. A test compares the files with what this tool would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.telemetry.events import Severity
from esper.telemetry.exposition import prometheus_name
from esper.telemetry.metric_table import COUNTERS, GAUGES, HISTOGRAMS, Metric

FOLDER = Path(__file__).resolve().parents[1] / "monitoring"
RULES, RULES_TEST, DASHBOARD = (FOLDER / f"esper-{name}" for name in ("rules.yml", "rules-test.yml", "dashboard.json"))

WINDOW = "10m"
"""Time for which an alert fires after an event."""
STEP_S, STEP_SLO = "1.0", 0.99
"""Objective of step times: this share of the steps takes at most STEP_S seconds. STEP_S is a bound of the histogram."""
ROUND_S, ROUND_SLO = "600.0", 0.95
"""Objective of round times."""
BURN = 14.4
"""Speed at which the share of slow steps may use up the objective before an alert fires. At this speed, a month's share
is used up in two days. Source: Beyer et al. 2018, The Site Reliability Workbook, ch. 5."""

W, E, C = Severity.WARNING, Severity.ERROR, Severity.CRITICAL
EVENTS: Mapping[str, tuple[Severity, str]] = {
    "gate_failure": (C, "gates"),
    "mesh_coverage_missing": (E, "gates"),
    "isolation_violated": (C, "gates"),
    "adoption_mismatch": (C, "gates"),
    "fallback_status_rejected": (C, "fallbacks"),
    "tamiyo_fallback_requested": (C, "fallbacks"),
    "command_rejected": (C, "commands"),
    "command_validation_failed": (E, "commands"),
    "policy_no_candidates": (C, "policy"),
    "policy_failed": (C, "policy"),
    "policy_timeout": (C, "policy"),
    "dependency_violation": (C, "dependencies"),
    "loss_device_mismatch": (E, "dependencies"),
    "guard_tripped": (C, "divergence"),
    "field_report_invalid": (E, "field-reports"),
    "field_reports_damaged": (E, "field-reports"),
    "emergency_signal_rejected": (C, "signals"),
    "emergency_signal_retried": (W, "signals"),
    "emergency_signal_dead_lettered": (C, "signals"),
    "emergency_signal_dropped": (C, "signals"),
    "emergency_signals_undelivered": (W, "signals"),
    "emergency_signal_unconfirmed": (C, "signals"),
    "emergency_queue_damaged": (E, "emergency-queue"),
    "emergency_queue_disk_full": (E, "emergency-queue"),
    "emergency_answer_lost": (E, "emergency-queue"),
    "emergency_inbox_crowded": (E, "emergency-queue"),
    "emergency_inbox_stuck": (E, "emergency-queue"),
    "emergency_inbox_unreadable": (C, "emergency-queue"),
    "emergency_level_changed": (W, "emergency-level"),
    "emergency_halt": (C, "emergency-level"),
    "emergency_halt_cleared": (W, "emergency-level"),
    "emergency_requests_unread": (W, "emergency-queue"),
    "emergency_reserve_hollow": (W, "emergency-queue"),
    "rollback_fast": (E, "rollbacks"),
    "rollback_full": (E, "rollbacks"),
    "checkpoint_rejected": (E, "storage"),
    "journal_damaged": (E, "storage"),
    "actor_died_starting": (E, "actors"),
    "actor_restarted": (E, "actors"),
    "trainer_rank_lost": (E, "actors"),
    "fault_fired": (W, "injected-faults"),
    "other_cpu": (W, "other-machine"),
    "other_hash_seed": (W, "other-machine"),
}
"""Severe event -> its highest severity, and its page in docs/runbooks."""


@dataclass(frozen=True)
class Alert:
    """One alert rule."""

    name: str
    expr: str
    severity: Severity
    page: str
    summary: str
    """May contain `{{ $labels.NAME }}`."""
    wait: str = "0s"

    @property
    def runbook(self) -> str:
        """Path of the runbook in the repository."""
        return f"docs/runbooks/{self.page}.md"

    def annotations(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return the annotations of a firing alert with these labels."""
        told = self.summary
        for name, value in labels.items():
            told = told.replace(f"{{{{ $labels.{name} }}}}", value)
        return {"runbook": self.runbook, "summary": told}


def recent(metric: str, window: str = WINDOW) -> str:
    """Return an expression for the increase of a counter within the window. A counter that is younger than the window
    began at 0, so all of it is new, even if the first scrape came after the event."""
    return f"(last_over_time({metric}[{window}]) unless {metric} offset {window}) or increase({metric}[{window}])"


def any_recent(metric: str) -> str:
    """Return the condition that any series of a counter went up within the window, by run."""
    return f"sum by (instance, job) ({recent(metric)}) > 0"


def alert_of(event: str) -> Alert:
    """Return the alert of a severe event."""
    severity, page = EVENTS[event]
    name = "Esper" + "".join(word.capitalize() for word in event.split("_"))
    told = f"{event} in {{{{ $labels.instance }}}}"
    return Alert(name, f'esper:severe_events:recent{{event="{event}"}} > 0', severity, page, told)


def within(metric: str, bound: str, window: str, labels: str = "") -> str:
    """Return the share of durations up to a bound."""
    of_bucket = f'{labels},le="{bound}"' if labels else f'le="{bound}"'
    counted = f"{metric}_count{{{labels}}}" if labels else f"{metric}_count"
    return (
        f"sum by (instance, job) (rate({metric}_bucket{{{of_bucket}}}[{window}]))"
        f" / sum by (instance, job) (rate({counted}[{window}]))"
    )


STEP, ROUND = prometheus_name("esper.step.duration"), prometheus_name("esper.round.duration")
RECORDS: Mapping[str, str] = {
    "esper:severe_events:recent": recent(prometheus_name("esper.severe_events")),
    "esper:step_in_time:ratio5m": within(STEP, STEP_S, "5m", 'role="tolaria"'),
    "esper:step_in_time:ratio1h": within(STEP, STEP_S, "1h", 'role="tolaria"'),
    "esper:round_in_time:ratio1h": within(ROUND, ROUND_S, "1h"),
    "esper:round_in_time:ratio6h": within(ROUND, ROUND_S, "6h"),
}
"""Recording rule -> its expression."""


def burning(kind: str, short: str, long: str, objective: float, most: float) -> str:
    """Return the condition that an objective is used up too fast, in a short and in a long window."""
    limit = round(min(most, BURN * (1 - objective)), 6)
    return f"1 - esper:{kind}:ratio{short} > {limit} and 1 - esper:{kind}:ratio{long} > {limit}"


OTHERS = (
    Alert(
        "EsperFallback",
        f"sum by (instance, job) ({prometheus_name('esper.fallbacks')}) > 0",
        C,
        "fallbacks",
        "a gate saw a fallback in {{ $labels.instance }}",
    ),
    Alert(
        "EsperSignalDropped",
        any_recent(prometheus_name("esper.signal.dropped")),
        C,
        "signals",
        "an emergency signal was dropped in {{ $labels.instance }}",
    ),
    Alert(
        "EsperSignalDeadLettered",
        any_recent(prometheus_name("esper.signal.dead_lettered")),
        C,
        "signals",
        "the delivery of an emergency signal was given up in {{ $labels.instance }}",
    ),
    Alert(
        "EsperActorRestarts",
        any_recent(prometheus_name("esper.actor.restarts")),
        E,
        "actors",
        "an actor was started again in {{ $labels.instance }}",
    ),
    Alert(
        "EsperActorDown",
        f"min by (instance, job, role) ({prometheus_name('esper.actor.up')}) == 0",
        E,
        "actors",
        "no actor of role {{ $labels.role }} is up in {{ $labels.instance }}",
        wait="2m",
    ),
    Alert(
        "EsperLoadErrors",
        any_recent(prometheus_name("esper.load.errors")),
        E,
        "storage",
        "a store has damaged entries in {{ $labels.instance }}",
    ),
    Alert(
        "EsperSpansLost",
        any_recent(prometheus_name("esper.spans.lost")),
        W,
        "spans",
        "spans could not be written in {{ $labels.instance }}",
    ),
    Alert(
        "EsperLogRecordsLost",
        any_recent(prometheus_name("esper.log_records.lost")),
        W,
        "spans",
        "severe events could not be exported in {{ $labels.instance }}",
    ),
    Alert(
        "EsperSevereEventsLost",
        any_recent(prometheus_name("esper.severe_events.lost")),
        C,
        "spans",
        "severe events could not be written in {{ $labels.instance }}",
    ),
    Alert(
        "EsperStepsSlow",
        burning("step_in_time", "5m", "1h", STEP_SLO, 1.0),
        W,
        "slow",
        f"too many steps take more than {STEP_S} s in {{{{ $labels.instance }}}}",
        wait="2m",
    ),
    Alert(
        "EsperRoundsSlow",
        burning("round_in_time", "1h", "6h", ROUND_SLO, 0.5),
        W,
        "slow",
        f"too many rounds take more than {ROUND_S} s in {{{{ $labels.instance }}}}",
        wait="2m",
    ),
    Alert(
        "EsperEndpointDown",
        'up{job="esper"} == 0',
        E,
        "endpoint",
        "{{ $labels.instance }} cannot be scraped: the run has ended, or hangs",
        wait="2m",
    ),
)
"""The alerts that belong to no single severe event."""


def alerts() -> tuple[Alert, ...]:
    """Return every alert."""
    return (*map(alert_of, EVENTS), *OTHERS)


# -- the files ---------------------------------------------------------------------------------------------------

HEAD = "# Written by tools/monitoring.py: change that file, and run it. A test compares.\n"


def quoted(text: str) -> str:
    """Return a text as a YAML scalar in double quotes, which are those of JSON."""
    return json.dumps(text)


def rules() -> str:
    """Return the rules file."""
    lines = [HEAD + "groups:", "- name: esper records", "  rules:"]
    for name, expr in RECORDS.items():
        lines += [f"  - record: {name}", f"    expr: {quoted(expr)}"]
    groups = [
        (f"esper severe events {severity}", [alert_of(event) for event in EVENTS if EVENTS[event][0] is severity])
        for severity in Severity
    ]
    for group, its in [*groups, ("esper run", list(OTHERS))]:
        lines += [f"- name: {group}", "  rules:"]
        for alert in its:
            lines += [
                f"  - alert: {alert.name}",
                f"    expr: {quoted(alert.expr)}",
                f"    for: {alert.wait}",
                f"    labels: {{severity: {alert.severity.lower()}}}",
                f"    annotations: {{runbook: {quoted(alert.runbook)}, summary: {quoted(alert.summary)}}}",
            ]
    return "\n".join(lines) + "\n"


RUN = {"instance": "run-1:9464", "job": "esper"}


@dataclass(frozen=True)
class Case:
    """A test of one alert: the series, the time at which the alert fires, and its labels beside those of the run."""

    alert: Alert
    series: Mapping[str, str]
    """Series -> its values from minute to minute, as promtool writes them."""
    at: str
    labels: Mapping[str, str]
    quiet_at: str = "1m"
    """A time at which the alert does not fire."""


def cases() -> Iterator[Case]:
    """Yield at least one case for each alert."""
    counter = prometheus_name("esper.severe_events")
    for event in EVENTS:
        yield Case(alert_of(event), {f'{counter}{{event="{event}"}}': "0 0 0 1x20"}, "4m", {"event": event}, "2m")
        yield Case(alert_of(event), {f'{counter}{{event="{event}"}}': "_ 1x20"}, "3m", {"event": event}, "0m")
    by = {alert.name: alert for alert in OTHERS}
    ups = {
        "EsperSignalDropped": prometheus_name("esper.signal.dropped"),
        "EsperSignalDeadLettered": prometheus_name("esper.signal.dead_lettered"),
        "EsperActorRestarts": prometheus_name("esper.actor.restarts") + '{role="kasmina"}',
        "EsperLoadErrors": prometheus_name("esper.load.errors") + '{store="field_reports"}',
        "EsperSpansLost": prometheus_name("esper.spans.lost"),
        "EsperLogRecordsLost": prometheus_name("esper.log_records.lost"),
        "EsperSevereEventsLost": prometheus_name("esper.severe_events.lost"),
        "EsperFallback": prometheus_name("esper.fallbacks") + '{source="status"}',
    }
    for name, series in ups.items():
        yield Case(by[name], {series: "0 0 0 1x20"}, "4m", {}, "2m")
    up = prometheus_name("esper.actor.up") + '{role="tolaria"}'
    yield Case(by["EsperActorDown"], {up: "1 1 0x20"}, "6m", {"role": "tolaria"}, "3m")
    yield Case(by["EsperEndpointDown"], {"up": "1 1 0x20"}, "6m", {}, "3m")
    yield Case(by["EsperStepsSlow"], slow(STEP, STEP_S, 'role="tolaria",'), "90m", {}, "20m")
    yield Case(by["EsperRoundsSlow"], slow(ROUND, ROUND_S), "800m", {}, "20m")


def slow(metric: str, bound: str, labels: str = "") -> dict[str, str]:
    """Return the series of a histogram: for half an hour every duration is within the bound, then none is."""
    fast, all_of = "0+10x30 300x1000", "0+10x1000"
    return {
        f'{metric}_bucket{{{labels}le="{bound}"}}': fast,
        f'{metric}_bucket{{{labels}le="+Inf"}}': all_of,
        f"{metric}_count{{{labels.rstrip(',')}}}": all_of,
    }


def of_the_run(series: str) -> str:
    """Return a series with the labels that Prometheus adds."""
    name, _, labels = series.partition("{")
    inner = ",".join([*([labels.rstrip("}")] if labels.rstrip("}") else []), *(f'{k}="{v}"' for k, v in RUN.items())])
    return f"{name}{{{inner}}}"


def rules_test() -> str:
    """Return the tests of the rules for promtool."""
    lines = [HEAD + f"rule_files: [{RULES.name}]", "evaluation_interval: 1m", "tests:"]
    for case in cases():
        lines += ["- interval: 1m", "  input_series:"]
        for series, values in case.series.items():
            lines += [f"  - {{series: {quoted(of_the_run(series))}, values: {quoted(values)}}}"]
        labels = {**case.labels, **RUN}
        told = {**labels, "severity": case.alert.severity.lower()}
        lines += [
            "  alert_rule_test:",
            f"  - {{eval_time: {case.quiet_at}, alertname: {case.alert.name}, exp_alerts: []}}",
            f"  - eval_time: {case.at}",
            f"    alertname: {case.alert.name}",
            f"    exp_alerts: [{json.dumps({'exp_labels': told, 'exp_annotations': case.alert.annotations(labels)})}]",
        ]
    return "\n".join(lines) + "\n"


HERE = 'instance=~"$instance"'


def quantile(name: str, share: float, labels: str = "") -> str:
    """Return a quantile of a histogram, by run."""
    inside = f"{HERE},{labels}" if labels else HERE
    return f"histogram_quantile({share}, sum by (le, instance) (rate({prometheus_name(name)}_bucket{{{inside}}}[5m])))"


def grown(name: str, by: str) -> str:
    """Return the increase of a counter within the window, by a label."""
    return f"sum by ({by}) (increase({prometheus_name(name)}{{{HERE}}}[{WINDOW}]))"


PANELS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Alerts": ("short", {"{{alertname}}": 'sum by (alertname) (ALERTS{alertname=~"Esper.*",alertstate="firing"})'}),
    "Severe events": ("short", {"{{event}}": grown("esper.severe_events", "event")}),
    "Fallbacks (must stay 0)": ("short", {"{{source}}": f"{prometheus_name('esper.fallbacks')}{{{HERE}}}"}),
    "Steps per second": (
        "ops",
        {"{{instance}}": f'sum by (instance) (rate({STEP}_count{{{HERE},role="tolaria"}}[5m]))'},
    ),
    "Time of a step": (
        "s",
        {f"p{share * 100:g}": quantile("esper.step.duration", share, 'role="tolaria"') for share in (0.5, 0.95, 0.99)},
    ),
    **{
        f"Time: {name.removeprefix('esper.').removesuffix('.duration').replace('.', ' ')}": (
            "s",
            {"p50": quantile(name, 0.5), "p95": quantile(name, 0.95)},
        )
        for name in HISTOGRAMS
        if name not in ("esper.step.duration", "esper.recovery.duration")
    },
    "Time: recovery, by phase": (
        "s",
        {
            "{{phase}}": "sum by (phase) ({0}_sum{{{1}}}) / sum by (phase) ({0}_count{{{1}}} > 0)".format(
                prometheus_name("esper.recovery.duration"), HERE
            )
        },
    ),
    "Steps and rounds in time": (
        "percentunit",
        {"steps": "esper:step_in_time:ratio5m", "rounds": "esper:round_in_time:ratio1h"},
    ),
    "Gates": ("short", {"{{gate}} passed={{passed}}": grown("esper.gate.evaluations", "gate, passed")}),
    "Stages of seeds": ("short", {"{{after}}": grown("esper.seed.transitions", "after")}),
    "Seeds in the live host": ("short", {"{{instance}}": f"{prometheus_name('esper.seeds.live')}{{{HERE}}}"}),
    "Parameters": ("short", {"{{instance}}": f"{prometheus_name('esper.parameters')}{{{HERE}}}"}),
    "Policy": (
        "short",
        {
            "decisions": grown("esper.policy.decisions", "instance"),
            "failures": grown("esper.policy.failures", "instance"),
        },
    ),
    "Commands": (
        "short",
        {
            "admitted": grown("esper.command.admissions", "instance"),
            "{{reason}}": grown("esper.command.rejections", "reason"),
        },
    ),
    "Emergency signals": (
        "short",
        {
            name: grown(f"esper.signal.{name}", "instance")
            for name in ("published", "delivered", "rejected", "retried", "dead_lettered", "dropped")
        },
    ),
    "Depth of the emergency queue": ("short", {"{{instance}}": f"{prometheus_name('esper.queue.depth')}{{{HERE}}}"}),
    "Actors that are up": ("short", {"{{role}}": f"sum by (role) ({prometheus_name('esper.actor.up')}{{{HERE}}})"}),
    "Restarts": ("short", {"{{role}}": grown("esper.actor.restarts", "role")}),
    "Rollbacks": ("short", {"{{tier}}": grown("esper.rollbacks", "tier")}),
    "Errors": (
        "short",
        {
            "{{store}}": grown("esper.load.errors", "store"),
            "guard": grown("esper.guard.trips", "instance"),
            "lost spans": grown("esper.spans.lost", "instance"),
            "lost log records": grown("esper.log_records.lost", "instance"),
            "lost severe events": grown("esper.severe_events.lost", "instance"),
            "injected faults": grown("esper.faults.fired", "instance"),
        },
    ),
}
"""Title -> unit, and legend -> query."""


def dashboard() -> str:
    """Return the dashboard. A user imports it and chooses the data source."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    panels: list[dict[str, Any]] = []
    for number, (title, (unit, queries)) in enumerate(PANELS.items()):
        panels.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "gridPos": {"h": 8, "w": 8, "x": 8 * (number % 3), "y": 8 * (number // 3)},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + place), "datasource": source, "expr": expr, "legendFormat": legend}
                    for place, (legend, expr) in enumerate(queries.items())
                ],
            }
        )
    variable = {
        "name": "instance",
        "label": "run",
        "type": "query",
        "datasource": source,
        "query": f"label_values({prometheus_name('esper.fallbacks')}, instance)",
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "refresh": 2,
    }
    inputs = [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}]
    whole = {
        "__inputs": inputs,
        "title": "esper",
        "uid": "esper",
        "schemaVersion": 37,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }
    return json.dumps(whole, indent=1) + "\n"


PAGE = FOLDER.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- end of metrics -->\n"


def tables() -> str:
    """Return the tables of docs/metrics.md: every metric, and every severe event with its alert."""
    lines: list[str] = []
    kinds: tuple[tuple[str, Mapping[str, Metric]], ...] = (
        ("Counters", COUNTERS),
        ("Histograms (seconds)", HISTOGRAMS),
        ("Gauges", GAUGES),
    )
    for title, metrics in kinds:
        lines += [f"### {title}", "| metric | on the endpoint | labels | what |", "|---|---|---|---|"]
        for name, metric in metrics.items():
            labels = ", ".join(f"`{label}`" for label in sorted(metric.labels))
            lines.append(f"| `{name}` | `{prometheus_name(name)}` | {labels} | {metric.what} |")
        lines.append("")
    lines += ["### Severe events", "| event | highest severity | alert | page |", "|---|---|---|---|"]
    for event, (severity, page) in EVENTS.items():
        lines.append(f"| `{event}` | {severity} | {alert_of(event).name} | [{page}](runbooks/{page}.md) |")
    lines += ["", "### Other alerts", "| alert | severity | page |", "|---|---|---|"]
    lines += [f"| {one.name} | {one.severity} | [{one.page}](runbooks/{one.page}.md) |" for one in OTHERS]
    return "\n".join(lines) + "\n"


def page_of_metrics() -> str:
    """Return docs/metrics.md with the present tables."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


FILES = {RULES: rules, RULES_TEST: rules_test, DASHBOARD: dashboard, PAGE: page_of_metrics}
"""File -> the function that returns its content."""


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for path, content in FILES.items():
        path.write_text(content())


if __name__ == "__main__":
    main()
