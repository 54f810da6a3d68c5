"""The report of drills as one HTML page that needs no other file: a row and a time line for each drill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from drills.report import Mark, Outcome, Span
from esper.archive.summary import Summary

STYLE = """
:root { color-scheme: light dark; --good: #1a7f37; --bad: #cf222e; --line: #8884; --run: #6e9bd1;
  --broken: #d9a441; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0; }
article { border-top: 1px solid var(--line); padding: .8rem 0; }
.passed { color: var(--good); } .failed { color: var(--bad); }
p { margin: .3rem 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: 3.4rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(9rem, 100%), 1fr)); gap: .3rem .8rem;
  margin: .4rem 0; }
dl > div { min-width: 0; } dl > .wide { grid-column: 1 / -1; }
dt { font-size: .8rem; opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
.axis { display: flex; justify-content: space-between; font-size: .75rem; opacity: .75; margin: 0; }
summary { cursor: pointer; }
"""
LONG = 24
"""A value with more characters gets a row of its own."""
WIDTH, HEIGHT, BAR = 1000.0, 40.0, 14.0
"""Size of a time line in units of its own picture, and the height of a stretch."""


def as_html(outcomes: Sequence[Outcome], seed: int, undisturbed: Summary | None = None) -> str:
    """Return the page."""
    passed = sum(outcome.passed for outcome in outcomes)
    kind = "passed" if passed == len(outcomes) else "failed"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>esper drills: {passed} of {len(outcomes)} passed</title><style>{STYLE}</style></head><body>"
        f'<h1>Drills: <span class="{kind}">{passed} of {len(outcomes)} passed</span></h1>'
        f"<p>Run seed {seed}. A drill breaks one thing at a stated moment. It passes if everything that must follow "
        f"was found.</p>{_comparison(undisturbed)}{''.join(map(_article, outcomes))}</body></html>\n"
    )


def _comparison(undisturbed: Summary | None) -> str:
    if undisturbed is None:
        return ""
    told = (
        f"The undisturbed run of {undisturbed.task}: {undisturbed.steps} steps in {undisturbed.rounds} rounds, "
        f"{undisturbed.wall_s:.2f} s in one process, test loss {undisturbed.test_loss:.4f}, "
        f"weights {undisturbed.weights_sha256[:16]}."
    )
    return f"<p>{escape(told)}</p>"


def _article(outcome: Outcome) -> str:
    word = "passed" if outcome.passed else "failed"
    number = f"{outcome.drill.number}. " if outcome.drill.number else ""
    findings = "".join(
        f'<li class="{"passed" if one.met else "failed"}">{escape(one.expected)}'
        + ("" if one.met else f" - found: {escape(one.found)}")
        + "</li>"
        for one in outcome.findings
    )
    told = "".join(map(_fact, outcome.measured().items()))
    return (
        f'<article id="{escape(outcome.drill.name)}"><h2>{number}{escape(outcome.drill.name)}: '
        f'<span class="{word}">{word}</span>, {_seconds(outcome.wall_s)}, {escape(outcome.drill.place)}</h2>'
        f"<p>{escape(outcome.drill.what)}</p>{_time_line(outcome)}<dl>{told}</dl>"
        f"<details{'' if outcome.passed else ' open'}><summary>expectations: {len(outcome.findings)}</summary>"
        f"<ul>{findings}</ul></details>{_notes(outcome.notes)}</article>"
    )


def _fact(fact: tuple[str, str]) -> str:
    name, value = fact
    wide = ' class="wide"' if len(value) > LONG else ""
    return f"<div{wide}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>notes: {len(notes)}</summary><ul>{items}</ul></details>"


def _time_line(outcome: Outcome) -> str:
    if not outcome.spans:
        return ""
    end_s = max([span.end_s for span in outcome.spans] + [mark.at_s for mark in outcome.marks])
    scale = WIDTH / end_s if end_s else 0.0
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="time line, {_seconds(end_s)}">'
        f"{''.join(_bar(span, scale) for span in outcome.spans)}"
        f"{''.join(_tick(mark, scale) for mark in _apart(outcome.marks, scale))}</svg>"
        f'<p class="axis"><span>0 s</span><span>{_seconds(end_s)}</span></p>'
        f"<p><small>{escape(_legend(outcome))}</small></p>"
    )


def _bar(span: Span, scale: float) -> str:
    color = "var(--run)" if span.good else "var(--broken)"
    x, width = span.begin_s * scale, max(1.0, (span.end_s - span.begin_s) * scale)
    return (
        f'<rect x="{x:.1f}" y="{HEIGHT - BAR:g}" width="{width:.1f}" height="{BAR:g}" fill="{color}" opacity=".8">'
        f"<title>{escape(span.what)}</title></rect>"
    )


def _tick(mark: Mark, scale: float) -> str:
    x = max(0.0, mark.at_s) * scale
    return (
        f'<path d="M{x:.1f} 4V{HEIGHT:g}" stroke="currentColor" stroke-width="2" vector-effect="non-scaling-stroke">'
        f"<title>{escape(mark.what)} at {_seconds(mark.at_s)}</title></path>"
    )


def _apart(marks: Iterable[Mark], scale: float) -> list[Mark]:
    """Return one mark of each name and place: many events of one name in one place are drawn once."""
    return list({(round(mark.at_s * scale), mark.what): mark for mark in marks}.values())


def _legend(outcome: Outcome) -> str:
    runs = "; ".join(f"{_seconds(span.begin_s)} to {_seconds(span.end_s)} {span.what}" for span in outcome.spans)
    grouped = (list(group) for _, group in groupby(outcome.marks, key=lambda mark: mark.what))
    events = "; ".join(map(_several, grouped))
    return f"{runs}. Severe events: {events or 'none'}."


def _several(marks: Sequence[Mark]) -> str:
    """Return one or more events of one name that follow each other, in words."""
    first, last = marks[0], marks[-1]
    if len(marks) == 1:
        return f"{_seconds(first.at_s)} {first.what}"
    return f"{_seconds(first.at_s)} to {_seconds(last.at_s)} {len(marks)} times {first.what}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f} s"
