"""The look of the demo's page, light and dark. Nothing is loaded from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fafaf8; --panel: #ffffff; --ink: #1c1e21; --quiet: #62666d; --line: #dedfdb;
  --huge: #6b46c1; --committed: #2b6cb0; --uncommitted: #a8cdec;
  --waste: #dd8a1f; --part: #d3cfe3; --free: #e9e9e5;
  --good: #1d7a46; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161a; --panel: #1c1f24; --ink: #e8e8e6; --quiet: #9aa0a8; --line: #33373e;
    --huge: #a78bfa; --committed: #5a9ee0; --uncommitted: #3b648c;
    --waste: #e9a548; --part: #3b3650; --free: #282c32;
    --good: #5cc98a; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem;
  background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
p { margin: 0 0 .75rem; }
.quiet { color: var(--quiet); }
.small { font-size: .875rem; }
.path { font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.verdict { margin: 1rem 0 1.5rem; padding: .7rem 1rem; border-left: .3rem solid; font-weight: 600;
  background: var(--panel); overflow-wrap: anywhere; }
.verdict.good { border-color: var(--good); color: var(--good); }
.verdict.bad { border-color: var(--bad); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 0 0 1.5rem; padding: 0; list-style: none; }
.tiles li, section { background: var(--panel); border: 1px solid var(--line);
  border-radius: .6rem; }
.tiles li { padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
section { padding: 1.1rem 1.25rem 1.25rem; margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; color: var(--quiet); font-size: .875rem; }
tr.sum td, tr.sum th { font-weight: 600; }
td.words { text-align: left; white-space: normal; min-width: 12rem; }
td.bar { width: 30%; min-width: 6rem; }
td.bar span { display: block; height: .7rem; border-radius: .2rem; background: var(--committed);
  min-width: 2px; }
.tabs > input { position: absolute; opacity: 0; }
.tabs > label { display: inline-block; padding: .25rem .8rem; margin: .25rem .25rem .9rem 0;
  border: 1px solid var(--line); border-radius: 2rem; cursor: pointer; font-size: .9rem; }
.tabs > input:checked + label { background: var(--ink); color: var(--ground);
  border-color: var(--ink); }
.tabs > input:focus-visible + label { outline: 2px solid var(--committed); outline-offset: 2px; }
.tabs > figure { display: none; margin: 0; }
TAB_RULES
.map { display: block; width: 100%; height: auto; }
.map text { font: 11px ui-monospace, "DejaVu Sans Mono", monospace; fill: var(--quiet);
  text-anchor: end; }
.map .hit { fill: transparent; }
.map .hit:hover { fill: none; stroke: var(--ink); stroke-width: 1.2; }
.huge { fill: var(--huge); background: var(--huge); }
.committed { fill: var(--committed); background: var(--committed); }
.uncommitted { fill: var(--uncommitted); background: var(--uncommitted); }
.waste { fill: var(--waste); background: var(--waste); }
.part { fill: var(--part); background: var(--part); }
.free { fill: var(--free); background: var(--free); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .8rem 0 0; padding: 0;
  list-style: none; font-size: .875rem; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .45rem;
  border-radius: .15rem; vertical-align: -.08rem; }
details summary { cursor: pointer; }
details ul { margin: .4rem 0 .8rem; padding-left: 1.2rem; }
"""
