"use strict";
// One page over /api: everything that comes from outside is written with textContent, never as HTML.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const PAGE = 50;
const STATES = ["ok", "reading", "silent", "parked", "not yet read"];
const FILL = { ok: "f-ok", reading: "f-busy", silent: "f-silent", parked: "f-parked", "not yet read": "f-new" };
const CLEARING = new Set(["restore", "phase-restore", "dcu-power-back", "meter-back"]);
let wanted = { state: "", q: "", sort: "", desc: false, offset: 0 };
let chosen = "";
let civil = 0;
let civilAt = 0;
let speed = 1;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}
const number = (n) => (n === undefined || n === null ? "–" : Number(n).toLocaleString("en"));
function octets(n) {
  if (n === undefined || n === null) return "–";
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  while (n >= 1000 && i < 3) { n /= 1000; i += 1; }
  return (i && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[i];
}
function lasting(s) {
  s = Math.max(0, Math.round(s));
  if (s < 120) return s + " s";
  if (s < 7200) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " d";
}
const now = () => civil + ((performance.now() - civilAt) / 1000) * speed;
const ago = (t) => (t ? lasting(now() - t) + " ago" : "never");
let zone; // the gateway's civil time; the browser's until it is known
const second = (t) => new Date(t * 1000).toLocaleString("sv-SE", { timeZone: zone }); // 2026-11-24 21:00:00
const instant = (t) => second(t).slice(0, 16);
const clock = (t) => second(t).slice(11);

// Parts of a whole as an SVG, for the policy forbids inline styles: [[share, class], ...].
function shares(parts) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 1 1");
  svg.setAttribute("preserveAspectRatio", "none");
  let x = 0;
  for (const [share, className] of parts) {
    const r = document.createElementNS(SVG, "rect");
    r.setAttribute("x", x);
    r.setAttribute("width", Math.max(0, share));
    r.setAttribute("height", 1);
    r.setAttribute("class", className);
    svg.append(r);
    x += share;
  }
  return svg;
}

function showOverview(o) {
  civil = o.civil || Date.now() / 1000;
  civilAt = performance.now();
  speed = o.speed || 1;
  zone = o.timezone || undefined;
  document.title = o.gateway + " · OpenDCU";
  $("gateway").textContent = o.gateway;
  $("version").textContent = o.version || "";
  if ($("roles").textContent !== (o.roles || []).join("")) $("roles").replaceChildren(...(o.roles || []).map((r) => element("span", r, "tag")));
  $("speed").hidden = speed === 1;
  $("speed").textContent = "civil time × " + number(speed);
  const m = o.meters || {};
  const total = m.total || 0;
  const heard = total - (m.silent || 0) - (m.parked || 0);
  $("meters-total").replaceChildren(number(total), element("small", " polled"));
  $("meters-bar").replaceChildren(shares(total ? [[heard / total, "f-ok"], [(m.silent || 0) / total, "f-silent"], [(m.parked || 0) / total, "f-parked"]] : []));
  $("meters-note").textContent = number(m.silent || 0) + " silent, " + number(m.parked || 0) + " parked";
  const j = o.journal || {};
  $("journal-depth").replaceChildren(octets(j.bytes_waiting), element("small", " waiting"));
  $("journal-bar").replaceChildren(shares(j.max_bytes ? [[j.used_bytes / j.max_bytes, j.full ? "f-bad" : "f-brand"]] : []));
  const room = j.hours_left === null || j.hours_left === undefined ? "" : ", room for " + lasting(j.hours_left * 3600);
  $("journal-note").textContent = octets(j.used_bytes) + " of " + octets(j.max_bytes) + room + (j.full ? ", FULL" : "") + (j.alarms_waiting ? ", " + number(j.alarms_waiting) + " alarms waiting" : "");
  const u = o.uplink || {};
  $("uplink-state").replaceChildren(element("span", u.state || "off", "state " + (u.state === "up" || u.state === "connected" ? "ok" : u.state === "off" ? "" : "silent")));
  const c = o.uplink_counts || {};
  $("uplink-flow").textContent = number(u.in_flight || 0) + " in flight, " + number(u.unacked || 0) + " not acknowledged" + (u.aside ? ", " + number(u.aside) + " set aside" : "");
  $("uplink-note").textContent = u.reason || (c.published === undefined ? "" : number(c.published) + " messages, " + octets(c.octets) + " since the start");
  const p = o.polling || {};
  $("visits").replaceChildren(number(p.visits), element("small", " visits"));
  const heardPushes = Object.values(o.pushes || {}).reduce((a, b) => a + (typeof b === "number" ? b : 0), 0);
  $("pushes").textContent = o.pushes && Object.keys(o.pushes).length ? number(o.pushes.heard ?? heardPushes) + " pushes heard" : "";
  $("failures").textContent = number(p.failures || 0) + " failed visits";
  $("memory").replaceChildren(number(Math.round(o.memory_mb || 0)), element("small", " MB"));
  $("uptime").textContent = "up " + lasting(o.uptime_s || 0);
  $("clock").textContent = o.clock && o.clock.synced === false ? "clock not synchronised" : "clock synchronised";
}

function meterRow(m) {
  const row = element("tr");
  row.tabIndex = 0;
  row.dataset.meter = m.meter;
  if (m.meter === chosen) row.className = "chosen";
  const state = element("td");
  state.append(element("span", m.state, "state " + m.state));
  const missing = element("td", number(m.missing), "right" + (m.missing ? " missing" : ""));
  const offset = m.clock_offset_s;
  const cells = [state, element("td", m.meter), element("td", m.line), element("td", ago(m.last_read)), element("td", number(m.captured), "right"), missing,
    element("td", offset === null || offset === undefined ? "–" : (offset > 0 ? "+" : "") + offset + " s", "right"), element("td", m.model, "wide")];
  row.append(...cells);
  if (m.error) row.title = m.error;
  return row;
}

let asking = 0;
async function loadMeters() {
  const mine = ++asking;
  const query = new URLSearchParams({ state: wanted.state, q: wanted.q, sort: wanted.sort, desc: wanted.desc ? "1" : "0", offset: wanted.offset, limit: PAGE });
  const answer = await get("/api/meters?" + query);
  if (!answer || mine !== asking) return;
  const body = $("rows");
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.meter : "";
  if (answer.rows.length) body.replaceChildren(...answer.rows.map(meterRow));
  else {
    const cell = element("td", wanted.q || wanted.state ? "No meter matches." : "No meters are polled by this process.", "empty");
    cell.colSpan = 8;
    const row = element("tr");
    row.append(cell);
    body.replaceChildren(row);
  }
  if (focused) for (const row of body.rows) if (row.dataset.meter === focused) row.focus({ preventScroll: true });
  const last = answer.offset + answer.rows.length;
  $("range").textContent = answer.total ? number(answer.offset + 1) + " to " + number(last) + " of " + number(answer.total) : "";
  $("before").disabled = answer.offset === 0;
  $("after").disabled = last >= answer.total;
  const counts = answer.counts;
  const all = Object.values(counts).reduce((a, b) => a + b, 0);
  const buttons = [["", "all", all], ...STATES.filter((s) => counts[s]).map((s) => [s, s, counts[s]])];
  $("states").replaceChildren(...buttons.map(([value, label, count]) => {
    const button = element("button", label + " " + number(count));
    button.type = "button";
    button.setAttribute("aria-pressed", String(wanted.state === value));
    button.addEventListener("click", () => { wanted.state = value; wanted.offset = 0; loadMeters(); });
    return button;
  }));
}

// Known rows and holes of the last rows of a profile, on one time axis.
function strip(entry) {
  const ends = [...entry.runs.map((r) => r.last), ...entry.holes.map((h) => h.last)];
  if (!ends.length || !entry.period) return null;
  const end = Math.max(...ends);
  const span = Math.min(Math.max(end - Math.min(...entry.runs.map((r) => r.first), ...entry.holes.map((h) => h.first)) + entry.period, 1), 200 * entry.period);
  const begin = end - span;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 " + span + " 1");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "strip");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", entry.kind + ": known and missing rows from " + instant(begin) + " to " + instant(end));
  const draw = (first, last, className, words) => {
    const from = Math.max(first - entry.period, begin);
    if (last <= begin) return;
    const r = document.createElementNS(SVG, "rect");
    r.setAttribute("x", from - begin);
    r.setAttribute("width", last - from);
    r.setAttribute("height", 1);
    r.setAttribute("class", className);
    const title = document.createElementNS(SVG, "title");
    title.textContent = words + ": " + instant(first) + " to " + instant(last);
    r.append(title);
    svg.append(r);
  };
  for (const run of entry.runs) draw(run.first, run.last, "f-ok", "known");
  for (const hole of entry.holes) draw(hole.first, hole.last, "f-silent", hole.cause || "missing");
  return svg;
}

async function loadDetail() {
  if (!chosen) return;
  const m = await get("/api/meters/" + encodeURIComponent(chosen));
  if (!m || m.meter !== chosen) return;
  $("detail").hidden = false;
  $("detail-title").textContent = m.meter;
  $("answer").textContent = m.why.answer;
  $("checks").replaceChildren(...m.why.checks.map((c) => element("li", c)));
  $("error").hidden = !m.why.error;
  $("error").textContent = m.why.error || "";
  const due = Object.entries(m.due || {}).map(([job, at]) => job + " " + (at <= now() ? "now" : "in " + lasting(at - now()))).join(", ");
  const facts = [["State", m.state], ["Line", m.line], ["Address", m.address], ["Model", m.model], ["Device", m.device || "not yet known"], ["Last read", ago(m.last_read)],
    ["Failed visits", m.failures ? number(m.failures) + " in a row" : "none"], ["Line mates", m.why.line.total ? number(m.why.line.total - m.why.line.silent) + " of " + number(m.why.line.total) + " answer" : "–"], ["Next", due || "–"]];
  $("facts").replaceChildren(...facts.flatMap(([k, v]) => [element("dt", k), element("dd", v)]));
  $("ledger").replaceChildren(...m.ledger.map((entry) => {
    const part = element("div");
    part.append(element("h3", entry.kind + " " + entry.profile + (entry.period ? ", every " + lasting(entry.period) : "")));
    const picture = strip(entry);
    if (picture) part.append(picture);
    const missing = entry.holes.reduce((sum, h) => sum + h.rows, 0);
    part.append(element("p", number(entry.captured) + " rows known, " + number(missing) + " missing" + (entry.device ? ", device " + entry.device : "")));
    if (entry.holes.length) {
      const list = element("ul");
      for (const h of entry.holes.slice(-8).reverse()) list.append(element("li", (h.rows ? number(h.rows) + " rows " : "") + instant(h.first) + " to " + instant(h.last) + ": " + (h.cause || "not named yet; it is read again while the meter holds it")));
      part.append(list);
    }
    return part;
  }));
}
function choose(meter) {
  chosen = meter;
  for (const row of $("rows").rows) row.classList.toggle("chosen", row.dataset.meter === meter);
  $("detail").hidden = !meter;
  history.replaceState(null, "", meter ? "#" + encodeURIComponent(meter) : location.pathname);
  loadDetail().then(() => meter && $("detail").scrollIntoView({ block: "nearest" }));
}

function alarmItem(a) {
  const item = element("li");
  const words = element("div");
  words.append(element("span", a.code, "code " + (CLEARING.has(a.code) ? "clears" : a.class)));
  if (a.meter) {
    const link = element("a", a.meter);
    link.href = "#" + encodeURIComponent(a.meter);
    words.append(" ", link);
  }
  if (a.phases && a.phases.length) words.append(" ", a.phases.join(" "));
  const notes = [a.inferred ? "inferred" : "", !a.authenticated && !a.inferred ? "not authenticated" : ""].filter(Boolean).join(", ");
  if (notes) words.append(element("div", notes, "dim"));
  const time = element("time", clock(a.at), "dim num");
  time.title = instant(a.at);
  item.append(time, words);
  return item;
}
function showAlarms(list) {
  $("alarms").replaceChildren(...(list.length ? list.map(alarmItem) : [element("li", "None so far.", "empty")]));
  $("alarm-count").textContent = list.length ? number(list.length) + " latest" : "";
}
function addAlarm(a) {
  const list = $("alarms");
  if (list.firstChild && list.firstChild.className === "empty") list.replaceChildren();
  list.prepend(alarmItem(a));
  while (list.children.length > 200) list.lastChild.remove();
  $("alarm-count").textContent = number(list.children.length) + " latest";
}

async function get(path) {
  try {
    const answer = await fetch(path);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}
function live(word) {
  $("live").textContent = word;
  $("live").className = "live " + (word === "live" ? "on" : word === "connecting" ? "" : "off");
}

let typing = 0;
$("search").addEventListener("input", (e) => { clearTimeout(typing); typing = setTimeout(() => { wanted.q = e.target.value; wanted.offset = 0; loadMeters(); }, 200); });
$("before").addEventListener("click", () => { wanted.offset = Math.max(0, wanted.offset - PAGE); loadMeters(); });
$("after").addEventListener("click", () => { wanted.offset += PAGE; loadMeters(); });
$("close").addEventListener("click", () => choose(""));
$("rows").addEventListener("click", (e) => { const row = e.target.closest("tr"); if (row && row.dataset.meter) choose(row.dataset.meter); });
$("rows").addEventListener("keydown", (e) => { if (e.key === "Enter" && e.target.dataset.meter) choose(e.target.dataset.meter); });
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape") choose("");
  if (e.key === "/" && document.activeElement !== $("search")) { e.preventDefault(); $("search").focus(); }
});
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => {
    const by = head.dataset.sort;
    wanted.desc = wanted.sort === by ? !wanted.desc : false;
    wanted.sort = by;
    for (const other of document.querySelectorAll("th[data-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", wanted.desc ? "descending" : "ascending");
    loadMeters();
  });
}
window.addEventListener("hashchange", () => { const meter = decodeURIComponent(location.hash.slice(1)); if (meter !== chosen) choose(meter); });

async function begin() {
  const overview = await get("/api/overview");
  if (overview) showOverview(overview);
  showAlarms((await get("/api/alarms")) || []);
  await loadMeters();
  if (location.hash) choose(decodeURIComponent(location.hash.slice(1)));
  const stream = new EventSource("/api/stream");
  stream.addEventListener("open", () => live("live"));
  stream.addEventListener("error", () => live("gateway away"));
  stream.addEventListener("overview", (e) => { live("live"); showOverview(JSON.parse(e.data)); });
  stream.addEventListener("alarm", (e) => addAlarm(JSON.parse(e.data)));
}
setInterval(() => { if (!document.hidden) { loadMeters(); loadDetail(); } }, 5000);
setInterval(() => { if (civil) $("civil").textContent = second(now()) + (zone ? " " + zone : ""); }, 500);
begin();
