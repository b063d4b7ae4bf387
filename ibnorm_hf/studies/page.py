# SPDX-License-Identifier: Apache-2.0
"""One HTML file that opens by itself: no network, pictures inside, tables that sort at a click or a key."""

from __future__ import annotations

import base64
import html
import re
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d0d7de;--soft:#f3f5f7;--good:#0a6b3d;--bad:#a1260d}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#12161b;--line:#3a424b;--soft:#1c2229;--good:#5fd39a;
--bad:#ff9a80}}
*{box-sizing:border-box}body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:88rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.2rem;margin-top:2rem}
p,ul{max-width:48rem}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px;
background:linear-gradient(to left,var(--paper) 40%,transparent) 100% 0/48px 100% no-repeat local,
linear-gradient(to left,#0005,transparent) 100% 0/14px 100% no-repeat scroll}
td:first-child{position:sticky;left:0;background:var(--paper)}th:first-child{position:sticky;left:0}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
td.long{white-space:normal;min-width:16rem}
tbody tr:last-child td{border-bottom:0}thead th{background:var(--soft)}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid currentColor}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}
figure{margin:1.5rem 0;max-width:64rem}img{max-width:100%;height:auto;background:#fff;border-radius:6px}
"""
_SCRIPT = """
for(const table of document.querySelectorAll("table")){
 const body=table.tBodies[0];
 table.querySelectorAll("th button").forEach((button,column)=>button.addEventListener("click",()=>{
  const head=button.closest("th"),down=head.getAttribute("aria-sort")==="ascending";
  table.querySelectorAll("th").forEach(th=>th.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort",down?"descending":"ascending");
  const key=row=>row.cells[column].textContent.trim(),number=text=>parseFloat(text.replace(/[,<]/g,""));
  const rows=[...body.rows].sort((a,b)=>{
   const x=key(a),y=key(b);
   if(!x||!y)return x?-1:y?1:0;
   const u=number(x),v=number(y),order=isNaN(u)||isNaN(v)?x.localeCompare(y):u-v;
   return down?-order:order;});
  body.append(...rows);}));
}
"""


def page(
    title: str, sections: list[tuple[str, list[str], list[dict[str, Any]], list[Any]]], pictures: list[Any]
) -> str:
    """The sections of a report, (heading, sentences, table, pictures) each, as one HTML document."""
    body = "\n".join(_section(*section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Otherwise a browser asks for /favicon.ico.
        f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _section(heading: str, sentences: list[str], lines: list[dict[str, Any]], pictures: list[Any]) -> str:
    parts = [f"<section><h2>{html.escape(heading)}</h2>"]
    items: list[str] = []
    for sentence in [*sentences, ""]:
        if sentence.startswith("- "):
            items.append(f"<li>{_text(sentence[2:])}</li>")
            continue
        if items:
            parts.append(f"<ul>{''.join(items)}</ul>")
            items = []
        if sentence:
            parts.append(f"<p>{_text(sentence)}</p>")
    if lines:
        parts.append(_table(lines))
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        caption = html.escape(picture.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return "\n".join([*parts, "</section>"])


def _text(sentence: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence, quote=False))


def _table(lines: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in names)
    rows = "".join("<tr>" + "".join(_cell(line.get(name, "")) for name in names) + "</tr>\n" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _cell(value: Any) -> str:
    text = str(value)
    kind = text if text in ("better", "worse") else "long" if len(text) > 60 else ""
    return f'<td class="{kind}">{html.escape(text)}</td>' if kind else f"<td>{html.escape(text)}</td>"
