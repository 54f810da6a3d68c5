"""Says what is wrong with one header of OTEL_EXPORTER_OTLP_HEADERS. No answer contains a part of the header.

OpenTelemetry's SDK writes a header that it cannot read to its log, with its value, and exports without the header.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_NAME = re.compile(r"[0-9A-Za-z._-]+")
_ENCODED = re.compile(r"[!#-+\--:<-\[\]-~]*")
"""Values that the SDK decodes: ASCII without space, double quote, comma, semicolon and backslash."""
_AS_IT_IS = re.compile(r"[ !#-+\--:<-\[\]-~]*")
"""Values that the SDK takes as they are: also with spaces."""
_SENT = re.compile(r"[ -~]*")


def header_fault(pair: str) -> str:
    """Return what is wrong with a pair `name=value`, as the end of a sentence. "": the header can be sent."""
    name, equals, value = (part.strip(" \t") for part in pair.partition("="))
    if not equals or not name:
        return "is not a pair: give key=value,key=value"
    if not _NAME.fullmatch(name):
        return "has a name that no header can have: use letters, digits, dots, hyphens and underscores of ASCII"
    if name.lower().endswith("-bin"):
        return "has a name for binary values, which this variable cannot hold: give another name"
    if not _AS_IT_IS.fullmatch(value):
        return 'has a value with a character outside ASCII, a control character, or one of " ; \\: write it as %XX'
    if _ENCODED.fullmatch(value) and not _SENT.fullmatch(unquote(value)):
        return "has a value with a character that no header can have, written as %XX: use printable ASCII"
    return ""
