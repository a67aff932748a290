"""Parts of a self-contained HTML page: no scripts, no requests, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole document; sections are given as HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{''.join(sections)}</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """Return a section; the body is given as HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def figure(uri: str, text: str, kind: str = "") -> str:
    """Return a picture with its caption below.

    Args:
        uri: A data URI.
        text: Caption.
        kind: A class of the style sheet.
    """
    return (
        f'<figure class="{kind}"><img src="{uri}" alt="{escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>\n"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table that scrolls sideways if it does not fit."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>"
        f"</table></div>\n"
    )


def duration(seconds: float) -> str:
    """Return a duration in minutes and seconds, as a person would write it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
