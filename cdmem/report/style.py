"""Style and script of the page: one column, light and dark, phone and print; no font, script or image is fetched."""

from __future__ import annotations

CSS = """
:root{--bg:#fff;--fg:#1b1f24;--soft:#57606a;--line:#d0d7de;--card:#f6f8fa;--link:#0550ae;
--good:#0a6c45;--bad:#a63c06;--wait:#6b4e00}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--fg:#e6e8eb;--soft:#a3abb5;--line:#343a42;--card:#1c2026;
--link:#79b8ff;--good:#5fd39b;--bad:#ff9a5c;--wait:#f0c14b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:860px;margin:0 auto;padding:28px 20px 80px}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0 .4em}
h2{font-size:1.25rem;margin:2.4em 0 .5em;padding-top:.6em;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.8em 0 .4em}
p,li{max-width:70ch}
a{color:var(--link)}
.lead{font-size:1.02rem;color:var(--soft)}
.verdict{border-left:5px solid var(--wait);background:var(--card);padding:14px 18px;margin:14px 0;
border-radius:0 6px 6px 0}
.verdict.reduced,.verdict.unchanged{border-color:var(--good)}
.verdict.amplified,.verdict.not_distilled{border-color:var(--bad)}
.verdict p{margin:.3em 0;max-width:none}
.claim{font-weight:700;letter-spacing:.01em}
.ci,.soft,figcaption,.caption{color:var(--soft)}
.ci{font-size:.86em;white-space:nowrap}
figure{margin:22px 0}
figcaption,.caption{font-size:.88rem;line-height:1.45}
.caption{margin:0 0 14px}
svg.chart{display:block;width:100%;height:auto;max-width:680px}
svg .pt{cursor:crosshair}
.scroll{overflow-x:auto;margin:12px 0;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.88rem;min-width:100%}
th,td{padding:6px 12px 6px 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}
thead th{color:var(--soft);font-weight:600}
tbody th{font-weight:600;white-space:normal;min-width:8.5em}
table:not(.sortable) td{white-space:normal;overflow-wrap:anywhere}
.sortable thead th{cursor:pointer}
.sortable thead th[aria-sort=ascending]::after{content:" \\2191"}
.sortable thead th[aria-sort=descending]::after{content:" \\2193"}
.wall{display:flex;flex-wrap:wrap;gap:14px 10px}
.wall>div{text-align:center;font-size:.72rem;color:var(--soft);line-height:1.3}
.px{image-rendering:pixelated;image-rendering:crisp-edges;image-rendering:pixelated;display:inline-block;
border:2px solid transparent;border-radius:2px;background:var(--card)}
.hit{border-color:#d55e00}
.triple{display:flex;gap:2px}
details{margin:10px 0}
summary{cursor:pointer;color:var(--link)}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px;overflow-x:auto;font-size:.8rem;
line-height:1.45}
.yes{color:var(--good)}.no{color:var(--bad)}
.two{display:grid;grid-template-columns:1fr;gap:0 24px}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.88rem;margin:14px 0 0}
nav a{white-space:nowrap}
@media (max-width:560px){main{padding:18px 14px 60px}h1{font-size:1.35rem}th,td{padding-right:10px}}
@page{margin:14mm}
@media print{:root{--bg:#fff;--fg:#000;--soft:#444;--line:#bbb;--card:#f5f5f5;--link:#000}
main{max-width:none;padding:0}nav,summary{display:none}figure,tr,.verdict{break-inside:avoid}h2{break-after:avoid}
.scroll{overflow:visible}table{font-size:.75rem}th,td{white-space:normal}}
"""

SCRIPT = """
document.querySelectorAll('table.sortable').forEach(function(t){
 t.querySelectorAll('thead th').forEach(function(h,k){
  h.tabIndex=0;
  function sort(){
   var up=h.getAttribute('aria-sort')!=='ascending';
   t.querySelectorAll('thead th').forEach(function(o){o.removeAttribute('aria-sort')});
   h.setAttribute('aria-sort',up?'ascending':'descending');
   var b=t.tBodies[0];
   Array.prototype.slice.call(b.rows).sort(function(x,y){
    var a=x.cells[k].textContent.trim(),c=y.cells[k].textContent.trim();
    var m=parseFloat(a.replace(/[^0-9.eE+-]+.*$/,'')),n=parseFloat(c.replace(/[^0-9.eE+-]+.*$/,''));
    var d=isNaN(m)||isNaN(n)?a.localeCompare(c):m-n;
    return up?d:-d;
   }).forEach(function(r){b.appendChild(r)});
  }
  h.addEventListener('click',sort);
  h.addEventListener('keydown',function(e){if(e.key==='Enter'||e.key===' '){e.preventDefault();sort()}});
 });
});
"""


def page(title: str, body: str) -> str:
    """The whole document; ``title`` is text that is escaped already, ``body`` is HTML."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )
