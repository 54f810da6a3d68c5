"""`esper trace`: lists, shows, searches, exports and checks the traces of a run. It changes nothing in the run.

Exit codes: 0 done; 1 a path of spans that `assert` requires does not exist; 2 wrong input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from esper.archive.run_directory import refusing
from esper.cli.command_table import COMMANDS
from esper.cli.console import PlainConsole
from esper.cli.long_table import LongTable
from esper.cli.options import JsonOption, RunArgument
from esper.cli.output import print_json, say
from esper.cli.trace_view import in_one_line, titled, tree
from esper.ground.clock import SystemClock
from esper.ground.exit_codes import CHECK_FAILED, DONE
from esper.ground.strict_json import strict_json
from esper.ground.suggest import listed
from esper.ground.workplace import fixed
from esper.trace.event_log import severe_events
from esper.trace.exporting_traces import as_otlp, as_perfetto
from esper.trace.failures import failure_of
from esper.trace.otlp_json import Span
from esper.trace.paths import find
from esper.trace.searching import Match
from esper.trace.searching import grep as search
from esper.trace.since import iso, length, since
from esper.trace.span_files import Skipped
from esper.trace.span_store import TraceSummary, one_trace, summaries
from esper.trace.span_tree import Node, trees, walk
from esper.trace.unseen_events import completed, unseen

app = typer.Typer(help=COMMANDS["trace"].help, add_completion=False, no_args_is_help=True, rich_markup_mode=None)

LONGEST_TEXT = 500
"""Largest number of characters of a text that `grep` prints."""

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="a trace id, or its first digits")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="T", help="an age (90s, 10m, 2h, 3d) or a time (2026-11-29T08:00, UTC)")
]


@app.command("list")
def list_all(
    run_dir: RunArgument,
    errors: Annotated[bool, typer.Option("--errors", help="only traces in which a span failed or never ended")] = False,
    slow_s: Annotated[
        float, typer.Option("--slow", metavar="S", min=0.0, help="only traces of at least so many seconds")
    ] = 0.0,
    severe: Annotated[bool, typer.Option("--severe", help="only traces with severe events")] = False,
    since_text: SinceOption = None,
    as_json: JsonOption = False,
) -> int:
    """List the traces of a run, the newest last. A round is one trace."""
    start_ns = int(since(since_text, SystemClock().now()).timestamp() * 1e9) if since_text else 0
    found = summaries(fixed(run_dir))
    counts = Counter(event.trace_id for event in severe_events(fixed(run_dir), found.skipped))
    outside = counts.total() - sum(counts[trace.trace_id] for trace in found.traces)
    chosen = [
        trace
        for trace in found.traces
        if trace.start_ns >= start_ns
        and trace.duration_ns >= slow_s * 1e9
        and (not errors or trace.errors or trace.never_ended)
        and (not severe or counts[trace.trace_id])
    ]
    if as_json:
        rows = [{**_summary(trace), "severe_events": counts[trace.trace_id]} for trace in chosen]
        print_json({"traces": rows, "severe_events_without_trace": outside, "skipped": found.skipped.as_json()})
    else:
        _show_list(chosen, counts, len(found.traces))
        if outside:
            say(f"{outside:,} severe events are in no trace on disk: esper events {run_dir}")
    tell_skipped(found.skipped, as_json=as_json)
    return DONE


@app.command()
def show(
    run_dir: RunArgument,
    trace_id: IdArgument,
    critical: Annotated[bool, typer.Option("--critical", help="only the critical path")] = False,
    attributes: Annotated[bool, typer.Option("--attrs", help="the attributes of each span")] = False,
    every: Annotated[bool, typer.Option("--all", help="do not fold equal spans")] = False,
    as_json: JsonOption = False,
) -> int:
    """Show one trace as a tree, with durations, self times, errors and severe events."""
    spans, skipped = one_trace(fixed(run_dir), trace_id)
    missing = unseen(spans, severe_events(fixed(run_dir), skipped))
    if as_json:
        print_json(
            {
                "trace_id": spans[0].trace_id,
                "spans": [_node(node) for node in walk(trees(spans)) if node.critical or not critical],
                "severe_events_without_span": [event.as_json() for event in missing],
                "skipped": skipped.as_json(),
            }
        )
    else:
        roots, on_disk, console = trees(completed(spans, missing)), {span.span_id for span in spans}, PlainConsole()
        strays = [event for event in missing if event.span_id not in on_disk]
        console.print(_heading(roots, spans), soft_wrap=True)
        for line in tree(roots, strays, console.width, fold=not every, critical=critical, attributes=attributes):
            console.print(line, soft_wrap=True)
    tell_skipped(skipped, as_json=as_json)
    return DONE


@app.command()
def grep(
    run_dir: RunArgument,
    word: Annotated[str, typer.Argument(metavar="WORD", help="a text, in upper or lower case")],
    as_json: JsonOption = False,
) -> int:
    """Find a word in names, attributes, errors and events. A line for each place, with its trace id."""
    found, skipped = search(fixed(run_dir), word)
    if as_json:
        print_json({"matches": [_match(one) for one in found], "skipped": skipped.as_json()})
    else:
        for one in found:
            text = in_one_line(_around(word, one.text))
            place = in_one_line(f"{one.role or '-'}  {one.span}  {one.where}")
            say(f"{one.trace_id}  {place}={text}")
        if not found:
            say(f"no span has {word!r}")
    tell_skipped(skipped, as_json=as_json)
    return DONE


class ExportFormat(StrEnum):
    """The formats of `esper trace export`."""

    PERFETTO = "perfetto"
    OTLP = "otlp"


@app.command()
def export(
    run_dir: RunArgument,
    trace_id: IdArgument,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="perfetto: for ui.perfetto.dev; otlp: OTLP JSON, for Jaeger")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: standard output")] = None,
) -> int:
    """Write one trace in the format of another tool."""
    spans, skipped = one_trace(fixed(run_dir), trace_id)
    roots = trees(completed(spans, unseen(spans, severe_events(fixed(run_dir), skipped))))
    made = as_perfetto(roots) if form is ExportFormat.PERFETTO else as_otlp(roots)
    if out is None:
        print_json(made)
    else:
        with refusing("--out", out):
            fixed(out).write_text(strict_json(made) + "\n", encoding="utf-8")
        say(f"{len(spans):,} spans of trace {spans[0].trace_id} written to {out}")
    tell_skipped(skipped, as_json=out is None)
    return DONE


@app.command("assert")
def check(
    run_dir: RunArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="such as 'esper round > gate evaluate!'")],
    trace_id: Annotated[str, typer.Option("--trace", metavar="ID", help="only this trace")] = "",
    role: Annotated[str | None, typer.Option("--role", help="role of the last span")] = None,
    error: Annotated[str | None, typer.Option("--error", metavar="CLASS", help="error of the last span")] = None,
    event: Annotated[str | None, typer.Option("--event", metavar="NAME", help="event of the last span")] = None,
    count: Annotated[int | None, typer.Option("--count", min=0, help="exact number of last spans in a trace")] = None,
    as_json: JsonOption = False,
) -> int:
    """Check that one trace has every given path of spans. Exit code 1 if no trace has them all."""
    found = find(fixed(run_dir), *paths, trace_id=trace_id, role=role, error=error, event=event, count=count)
    if as_json:
        told = {"passed": bool(found), "why": found.reason, "trace_ids": found.trace_ids}
        print_json({**told, "skipped": found.skipped.as_json()})
    elif found:
        say(f"found in {_traces(len(found.trace_ids))}: {listed(found.trace_ids)}" if found.ends else "no trace has it")
    else:
        say(in_one_line(f"not found: {found.reason}"))
    tell_skipped(found.skipped, as_json=as_json)
    return DONE if found else CHECK_FAILED


def tell_skipped(skipped: Skipped, *, as_json: bool) -> None:
    """Print the parts that were not read; on standard error if standard output has JSON."""
    say(*skipped.sentences(), error=as_json)


def _summary(trace: TraceSummary) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "root": trace.root,
        "fence": trace.fence,
        "start": iso(trace.start_ns),
        "duration_s": trace.duration_ns / 1e9,
        "spans": len(trace.spans),
        "errors": trace.errors,
        "never_ended": trace.never_ended,
    }


def _show_list(chosen: Sequence[TraceSummary], severe: Mapping[str, int], number: int) -> None:
    if not chosen:
        say(f"no trace is to be shown; the run has {number}")
        return
    shown = LongTable("trace", "root", "start (UTC)", "time", "spans", "errors", "severe", wraps="root")
    for trace in chosen:
        open_spans = f" +{trace.never_ended} open" if trace.never_ended else ""
        shown.add_row(
            trace.trace_id[:8],
            in_one_line(titled(trace.root, {"fence": trace.fence})),
            iso(trace.start_ns)[5:19].replace("T", " "),  # without the year the table is not wider than 80 columns
            length(trace.duration_ns),
            f"{len(trace.spans):,}",
            f"{trace.errors or ''}{open_spans}",
            f"{severe[trace.trace_id] or ''}",
            style="red" if trace.errors else "yellow" if severe[trace.trace_id] else "",
        )
    PlainConsole().print(shown)


def _heading(roots: Sequence[Node], spans: Sequence[Span]) -> Text:
    first = spans[0].start_ns
    last = max(root.last_ns for root in roots)
    failed, never = sum(span.failed for span in spans), sum(span.end_ns is None for span in spans)
    counts = [f"{len(spans):,} spans", length(max(0, last - first))]
    counts += [f"{failed:,} failed"] if failed else []
    counts += [f"{never:,} never ended"] if never else []
    return Text(f"trace {spans[0].trace_id}\n{iso(first)[:19].replace('T', ' ')} UTC, {', '.join(counts)}")


def _around(word: str, text: str) -> str:
    """Return at most `LONGEST_TEXT` characters of a text, with the word in their middle."""
    place = text.lower().find(word.lower())
    first = max(0, min(place - LONGEST_TEXT // 2, len(text) - LONGEST_TEXT))
    end = first + LONGEST_TEXT
    return ("..." if first else "") + text[first:end] + ("..." if end < len(text) else "")


def _traces(number: int) -> str:
    return f"{number:,} trace{'s' * (number != 1)}"


def _match(one: Match) -> dict[str, Any]:
    told = {key: value for key, value in asdict(one).items() if key != "start_ns"}
    return {**told, "start": iso(one.start_ns)}


def _node(node: Node) -> dict[str, Any]:
    failure, duration_ns = failure_of(node), node.duration_ns
    return {
        "span_id": node.span.span_id,
        "parent_id": node.span.parent_id,
        "depth": node.depth,
        "role": node.span.role,
        "name": node.span.name,
        "start": iso(node.span.start_ns),
        "duration_s": duration_ns / 1e9 if duration_ns is not None else None,
        "self_s": node.self_ns / 1e9,
        "critical": node.critical,
        "critical_s": node.critical_ns / 1e9,
        "ended": node.span.end_ns is not None,
        "parent_on_disk": not node.orphan,
        "error": {
            "class": failure.error,
            "message": failure.message,
            "place": failure.place,
            "users_place": failure.users_place,
            "notes": list(failure.notes),
            "cause": list(failure.cause),
            "began_here": failure.began_here,
        }
        if failure is not None
        else None,
        "attributes": _plain(node.span.attributes),
        "events": [
            {"time": iso(event.time_ns), "name": event.name, "attributes": _plain(event.attributes)}
            for event in node.span.events
        ],
        "links": [{"trace_id": link.trace_id, "span_id": link.span_id} for link in node.span.links],
        "dropped": {name: getattr(node.span, f"dropped_{name}") for name in ("attributes", "events", "links")},
    }


def _plain(value: Any) -> Any:
    """Return attributes as JSON values. Bytes become hexadecimal text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if hasattr(value, "items") else value
