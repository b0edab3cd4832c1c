// The page: follows the stream of ingest and shows its data as text. It changes nothing in the system.
"use strict";

const live = (() => {
  const LATE_SECONDS = 5; // without new data, after which the state of the system is unknown
  const LONGER_SECONDS_MAX = 10; // for longer charts
  const RETRY_SECONDS = 2; // after the server has rejected the stream
  const NARROW_BARS_MAX = 8; // partitions with a bar on a phone: those with the most events
  const byId = (id) => document.getElementById(id);
  // The server wrote the first state into the page. `heardAt` is on the browser's monotonic clock: its wall clock may be changed.
  const page = { source: null, heardAt: performance.now(), newsOf: null, status: null, said: "", answer: null, more: [], events: [] };

  const LEVELS = { healthy: "Healthy", degraded: "Degraded", critical: "Critical", unknown: "Unknown" };
  // A sign and its colour for each kind of event; the event has its own text.
  const KINDS = {
    rate_changed: ["◆", ""],
    breaker_opened: ["■", "bad"],
    breaker_closed: ["✓", "good"],
    paused: ["▲", "warn"],
    resumed: ["✓", "good"],
    state_restored: ["↺", "warn"],
    override_set: ["▲", "warn"],
    override_ended: ["✓", "good"],
    bands_set: ["◆", ""],
    key_made: ["◆", ""],
    key_revoked: ["◆", ""],
    account_limit_set: ["◆", ""],
    account_limit_ended: ["◆", ""],
    gap_skipped: ["▲", "warn"],
    poison_accepted: ["▲", "warn"],
    dead_letters_replayed: ["↺", ""],
    drainer_terminated: ["■", "bad"],
    began_late: ["▲", "warn"],
    late_begin_accepted: ["▲", "warn"],
    log_tail_lost: ["■", "bad"],
  };

  const PROTOCOLS = { events: "Sluice’s JSON", lines: "Lines", otlp: "OpenTelemetry", elasticsearch: "Elasticsearch", loki: "Loki", splunk: "Splunk HEC", gelf: "GELF" };

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // Shows `commands` in a text as code.
  function worded(text) {
    return text.split("`").map((part, i) => (i % 2 ? element("code", part) : part));
  }

  // Sets a text only if it changed: a reader's selection and focus survive the next second.
  function say(node, text, make = (words) => [words]) {
    if (node.dataset.said === text) return;
    node.dataset.said = text;
    node.replaceChildren(...make(text));
  }

  // The answer to a problem: what happens by itself, where to look, and the command to run. Made once, then updated.
  function answerBlock() {
    const list = element("dl", undefined, "answer");
    const row = (title) => {
      const [box, said] = [element("div"), element("dd")];
      box.append(element("dt", title), said);
      list.append(box);
      return { box, said };
    };
    const [itself, look, run] = [row("By itself"), row("Look at"), row("Run")];
    const [words, link] = [element("span"), element("a", "Runbook", "runbook")];
    look.said.append(words, " ", link);
    const [code, button] = [element("code"), element("button", "Copy")];
    button.type = "button";
    button.addEventListener("click", () => copy(code, button));
    const shell = element("a", "in a prepared shell");
    run.said.append(code, " ", button, " ", shell);
    function update(problem, runbooksUrl) {
      const { byItself = "", lookAt = "", command = "", runbook = null } = problem || {};
      list.hidden = !problem;
      itself.box.hidden = !byItself;
      look.box.hidden = !lookAt;
      run.box.hidden = !command;
      say(itself.said, byItself);
      say(words, lookAt, worded);
      say(code, command);
      button.setAttribute("aria-label", `Copy: ${command}`);
      shell.hidden = !runbooksUrl; // the page itself lost its stream, and does not know the address
      if (runbooksUrl) shell.href = runbooksUrl.replace(/\/$/, "#prepare-a-shell");
      link.hidden = !runbook; // a reason of a newer version has none
      if (!runbook) return;
      link.href = runbooksUrl + runbook;
      link.setAttribute("aria-label", `Runbook: ${runbook}`);
    }
    return { list, update };
  }

  // Browsers give the clipboard only to pages from this machine or with TLS; else the command is selected.
  async function copy(code, button) {
    let words = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      words = "Selected";
    }
    button.textContent = words;
    byId("announce").textContent = words;
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  // --- The headline ------------------------------------------------------------------------

  function wellWords(status) {
    const admitted = status.admitted;
    const whole = Math.round(admitted);
    const taken = format.known(admitted) ? `${format.counted(whole, "event")} per second ${whole === 1 ? "is" : "are"} admitted` : "events are admitted";
    const measured = policies.measured(status.ratePolicy);
    const beside = measured && status.consumerLag ? ` (${policies.words(measured)})` : "";
    return `All is well: ${taken}, ${status.consumerLag === null ? "the lag is not known yet" : `${format.counted(status.consumerLag, "event")} ${status.consumerLag === 1 ? "waits" : "wait"} to be stored`}${beside}`;
  }

  // The beginning of a reason, for a title: up to its first colon or semicolon, or to the second one if that is short. (A time
  // of day has colons too.)
  function gist(words) {
    const parts = words.split(/[:;] /);
    return parts[0].length < 15 ? parts.slice(0, 2).join(": ") : parts[0];
  }

  function showHeadline(status) {
    const [first, ...rest] = status.reasons;
    const words = first ? first.what : wellWords(status);
    const verdict = first ? gist(words) : words;
    showLevel(status.status, verdict, first ? verdict : "all is well");
    const override = status.rateOverride;
    if (first) say(byId("cause"), words.slice(verdict.length).replace(/^[:;] /, "").replace(/^[a-z]/, (letter) => letter.toUpperCase()));
    else say(byId("cause"), override ? `Set by an operator: ${format.number(override.rate)} events per second until ${format.time(override.until)} UTC, by ${override.by}: ${override.why}` : "");
    page.answer.update(first, status.runbooksUrl);
    showMore(rest, status.runbooksUrl);
    announce(`${LEVELS[status.status]}: ${first ? first.what : "all is well"}`);
  }

  // The other problems: their text, and on request the answer to each.
  function showMore(problems, runbooksUrl) {
    const list = byId("more");
    while (page.more.length > problems.length) page.more.pop().item.remove();
    while (page.more.length < problems.length) {
      const [item, box, words, block] = [element("li"), element("details"), element("summary"), answerBlock()];
      box.append(words, block.list);
      item.append(box);
      list.append(item);
      page.more.push({ item, words, block });
    }
    problems.forEach((problem, i) => {
      const { item, words, block } = page.more[i];
      item.dataset.level = problem.severity;
      say(words, problem.what);
      block.update(problem, runbooksUrl);
    });
  }

  function showLevel(level, headline, title) {
    document.body.dataset.severity = level;
    byId("level").textContent = LEVELS[level];
    byId("headline").textContent = headline;
    document.title = `${LEVELS[level]}: ${title} · Sluice`;
    const icon = byId("icon");
    const wanted = icon.dataset[level];
    if (icon.getAttribute("href") !== wanted) icon.setAttribute("href", wanted);
    document.querySelector(".shape").style.backgroundImage = `url("${wanted}")`;
  }

  // Without new data the state is unknown: the last status and its colours must not look current.
  function showUnknown(words) {
    const since = page.status === null ? "" : ` since ${format.time(page.status.at)} UTC`;
    const headline = `No data${since}: the state of the system is unknown`;
    showLevel("unknown", headline, `no data${since}`);
    say(byId("cause"), "All figures below are old.");
    const lookAt = words || "whether ingest runs at this address, and the network to it";
    page.answer.update({ byItself: "The page keeps trying.", lookAt, command: "python -m pipeline status" });
    showMore([]);
    announce(`Unknown: ${headline}`);
  }

  // Announced to screen readers only if more than the numbers changed: these change every second.
  function announce(words) {
    const gist = words.replace(/[\d.,]+/g, "");
    if (gist === page.said) return;
    page.said = gist;
    byId("announce").textContent = words;
  }

  // --- The cards ---------------------------------------------------------------------------

  function card(name, value, unit, words, level) {
    const box = byId(`card-${name}`);
    const shown = box.querySelector("b");
    shown.replaceChildren(value);
    if (unit) shown.append(" ", element("span", unit));
    box.querySelector("small").textContent = words;
    if (level) box.dataset.level = level;
    else delete box.dataset.level;
  }

  function bar(name, share) {
    byId(`card-${name}`).querySelector("i").style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  }

  // The severity of the worst problem for a card, from the judgement of health.
  function levelOf(status, ...codes) {
    const found = status.reasons.find((reason) => codes.includes(reason.code));
    return found ? found.severity : null;
  }

  function showFlow(status) {
    const { number } = format;
    card("admitted", number(status.admitted), "/s", `of ${number(status.offered)} offered per second`);
    const refused = ["s429", "s503"].map((name) => charts.lately(name));
    const share = status.refusedShare > 0 ? `${Math.max(1, Math.round(100 * status.refusedShare))} % of the ${status.refusedShareTime}; ` : "";
    const levels = Object.entries(status.levels || {}).map(([name, one]) => `${name} ${Math.round(100 * one.refusedShare)} %`);
    const byLevel = levels.length ? `of ${levels.join(", ")} in the last 10 s; ` : "";
    card("refused", number(status.refused), "/s", `${share}${byLevel}requests with 429: ${number(refused[0])}, 503: ${number(refused[1])} per second`, levelOf(status, "refusing", "log_down", "log_full"));
    const rate = status.rateLimit;
    const { full, isLowered, of } = policies.scale(status.ratePolicy, rate, status.eventSink);
    card("rate", number(rate), "/s", isLowered ? `of ${of}: ${status.rateDecidedBy}` : status.rateDecidedBy, status.rateLevel);
    bar("rate", rate / full);
    card("bucket", number(status.availablePermissions), "tokens", `of ${number(status.bucketCapacity)}; a token admits one event`);
    bar("bucket", status.availablePermissions / status.bucketCapacity);
  }

  function showBacklog(status) {
    const { number, duration } = format;
    const lag = status.consumerLag;
    const lags = Object.values(status.lagByPartition || {});
    card("lag", number(lag), lag === 1 ? "event" : "events", lag === null ? "unknown" : policies.backlogWords(status.ratePolicy), levelOf(status, "behind", "lag_unknown"));
    const waits = status.consumption === "paused" && lag > 0;
    const empty = waits ? (status.drainRate > 0 ? "before consumption was paused" : "none while consumption is paused") : lag === 0 ? "no events wait" : status.secondsToEmpty !== null && status.secondsToEmpty < 2 ? "keeps up with new events" : status.secondsToEmpty !== null ? `lag stored in about ${duration(status.secondsToEmpty)} at this pace` : lag === null ? "" : "the lag does not shrink";
    card("drain", number(status.drainRate), "/s", empty, levelOf(status, "no_progress"));
    const most = format.ceiling(Math.max(0, ...lags), 100);
    const isCut = lags.length > NARROW_BARS_MAX;
    const largest = new Set(lags.map((value, partition) => [value, partition]).sort((a, b) => b[0] - a[0]).slice(0, NARROW_BARS_MAX).map((one) => one[1]));
    const cut = element("span", `These ${NARROW_BARS_MAX} of ${lags.length} partitions have the most events.`, "narrow");
    byId("lags-scale").replaceChildren(...(lags.length ? [`p0 is partition 0. A full bar is ${number(most)} events.`] : []), ...(isCut ? [" ", cut] : []));
    byId("lags").replaceChildren(...lags.map((value, partition) => {
      const item = element("li", undefined, largest.has(partition) ? "" : "wide");
      const track = element("span", undefined, "bar");
      track.append(element("i"));
      track.firstChild.style.width = `${(100 * value) / most}%`;
      item.append(element("span", `p${partition}`), track, element("b", number(value)));
      return item;
    }));
  }

  function showLoop(status) {
    const sink = status.eventSink;
    const BREAKER = { closed: `writes to ${sink} succeed`, open: `no events are stored; writes to ${sink} are tried again`, "half-open": `a write to ${sink} is being tried now`, unknown: "unknown to the control store" };
    const breaker = status.circuitBreaker;
    const isOpen = breaker === "open" || breaker === "half-open";
    card("breaker", breaker, "", BREAKER[breaker], levelOf(status, "breaker_open", "pauses_unknown", "store_down"));
    const pauses = status.pauses;
    const held = pauses && pauses.length > 0;
    const place = (pause) => pause.partition === null ? "" : `p${pause.partition} `;
    const reasons = held ? pauses.map((pause) => `${place(pause)}${pause.reason.replace("_", " ")} since ${format.time(pause.since)}`).join("; ") : "";
    const CONSUMPTION = { paused: reasons, stalled: "events wait, and none is stored", unknown: "workers keep their last state", running: `log: ${status.eventLog === "kafka" ? "Kafka" : "Redis Streams"}, ${status.logCopies === 1 ? "single copy" : `${status.logCopies} copies`}` };
    const isPartly = held && status.consumption === "running";
    card("consumption", isPartly ? "partly paused" : status.consumption, "", isPartly ? reasons : CONSUMPTION[status.consumption], levelOf(status, "no_progress", "breaker_open", "paused", "pauses_unknown", "store_down"));
    const age = status.controllerAgeSeconds;
    const policy = status.ratePolicy;
    byId("policy").textContent = policies.sentence(policy);
    card("controller", age === null ? "silent" : format.duration(age), age === null ? "" : "ago", `sets the rate every ${format.duration(status.controllerPeriodSeconds)}`, levelOf(status, "controller_silent", "store_down"));
    const override = status.rateOverride;
    const beneath = override && status.rateLimit < override.rate ? "; the breaker allows only the lowest rate" : "";
    if (override) card("override", format.number(override.rate), "/s", `until ${format.time(override.until)}, by ${override.by}: ${override.why}${beneath}`, "degraded");
    else card("override", status.storeIsAway ? "unknown" : "none", "", status.storeIsAway ? "" : isOpen ? "the lowest rate while the breaker is open" : "the rate policy decides");
  }

  // --- The protocols -----------------------------------------------------------------------

  function showProtocols(status) {
    const found = Object.entries(status.protocols || {});
    byId("protocols").hidden = found.length === 0;
    byId("protocol-rows").replaceChildren(...found.map(([name, one]) => {
      const row = element("tr");
      const head = element("th", PROTOCOLS[name] || name);
      head.scope = "row";
      row.append(head, ...["accepted", "refused", "rejected"].map((outcome) => element("td", format.number(one[outcome]), one[outcome] > 0 ? "" : "none")));
      return row;
    }));
  }

  // --- The events --------------------------------------------------------------------------

  function eventRow(event) {
    const [sign, className] = KINDS[event.kind] || ["•", ""];
    const row = element("tr");
    const what = element("td");
    const mark = element("span", sign, `sign ${className}`);
    mark.setAttribute("aria-hidden", "true");
    what.append(mark, event.what);
    const when = element("td");
    const time = element("time", format.moment(event.at, page.status.at));
    time.dateTime = new Date(event.at * 1000).toISOString();
    when.append(time, " ", element("small"));
    const by = element("td", event.by);
    by.title = event.byWhole;
    row.append(when, what, by, element("td", event.why));
    return row;
  }

  // The rare events first: the steps of the rate policy are routine.
  function showEvents(events) {
    page.events = events.map((event) => ({ event, row: eventRow(event), text: `${event.kind} ${event.what} ${event.by} ${event.byWhole} ${event.why}`.toLowerCase() }));
    showFiltered();
  }

  function showFiltered() {
    const wanted = byId("filter").value.trim().toLowerCase();
    const found = page.events.filter((one) => one.text.includes(wanted));
    const rows = (isRoutine) => found.filter((one) => one.event.isRoutine === isRoutine).map((one) => one.row);
    const none = element("tr");
    none.append(element("td", wanted ? "No event has this text." : "Nothing yet."));
    none.firstChild.colSpan = 4;
    byId("rows").replaceChildren(...(found.length ? rows(false) : [none]));
    byId("routine").replaceChildren(...rows(true));
    byId("filtered").textContent = wanted ? `${found.length} of ${page.events.length}` : "";
    showAges();
  }

  function showAges() {
    for (const { event, row } of page.events) row.querySelector("small").textContent = `${format.age(page.status.at - event.at)} ago`;
  }

  // --- Longer charts -----------------------------------------------------------------------

  const SPANS = { "6h": { name: "6h", words: "6 hours", seconds: 21600 }, "7d": { name: "7d", words: "7 days", seconds: 604800 } };
  const span = { chosen: "", asking: null };

  function choose(name) {
    span.chosen = name;
    for (const button of document.querySelectorAll("[data-span]")) button.setAttribute("aria-pressed", String(button.dataset.span === name));
    byId("charts").textContent = `The last ${name ? SPANS[name].words : "15 minutes"}`;
    byId("span-note").textContent = name ? "asking Prometheus …" : "";
    if (name) askLonger();
    else charts.showSpan(null, null);
  }

  // The answer of a choice that was changed meanwhile is dropped.
  async function askLonger() {
    if (span.asking) span.asking.abort();
    const [name, asking] = [span.chosen, new AbortController()];
    span.asking = asking;
    const patience = setTimeout(() => asking.abort(), 1000 * LONGER_SECONDS_MAX);
    let words;
    try {
      const answer = await fetch(`/charts/${name}`, { signal: asking.signal });
      const found = await answer.json();
      if (span.asking !== asking) return;
      words = answer.status === 200 ? spanWords(found) : found.error.message;
      if (answer.status === 200) charts.showSpan(SPANS[name], found.points);
    } catch {
      words = "ingest does not answer";
    } finally {
      clearTimeout(patience);
    }
    if (span.asking === asking) byId("span-note").textContent = words;
  }

  function spanWords({ points, step }) {
    return points.length ? `a point is ${format.duration(step)}; lag and pauses: the worst of it` : "Prometheus has nothing yet";
  }

  for (const button of document.querySelectorAll("[data-span]")) button.addEventListener("click", () => choose(button.dataset.span));
  setInterval(() => { if (span.chosen && !document.hidden) askLonger(); }, 60000);

  // --- The stream --------------------------------------------------------------------------

  function show(message) {
    const status = message.status;
    page.status = status;
    if (status.at !== page.newsOf) page.heardAt = performance.now(); // a repeated status is not new data
    page.newsOf = status.at;
    if (isOld()) return lost();
    charts.shape(status);
    charts.draw();
    showHeadline(status);
    showFlow(status);
    showBacklog(status);
    showLoop(status);
    showProtocols(status);
    if (message.events) showEvents(message.events);
    else showAges();
    byId("about").textContent = `Served by ${status.process} to ${status.viewers} ${status.viewers === 1 ? "page" : "pages"}.`;
    found(status);
  }

  function isOld() {
    return performance.now() - page.heardAt > 1000 * LATE_SECONDS;
  }

  function found(status) {
    byId("lost").hidden = true;
    byId("link").dataset.state = "live";
    byId("link-words").textContent = status.storeIsAway ? "live, from one process" : `live, ${format.time(status.at)} UTC`;
  }

  function lost(words) {
    const since = page.status === null ? "" : ` since ${format.time(page.status.at)}`;
    byId("lost").textContent = words ? `No live data: ${words}` : `Connection lost${since === "" ? "" : `${since} UTC`}`;
    byId("lost").hidden = false;
    byId("link").dataset.state = "lost";
    byId("link-words").textContent = `lost${since}`;
    showUnknown(words);
  }

  // The answer to a rejected stream has the reason as text, but EventSource does not expose it.
  async function askWhy() {
    const asking = new AbortController();
    try {
      const answer = await fetch("/events", { signal: asking.signal });
      if (answer.status !== 200) lost((await answer.json()).error.message);
    } catch {
      lost();
    } finally {
      asking.abort();
    }
  }

  function connect() {
    const source = new EventSource("/events");
    page.source = source;
    source.addEventListener("snapshot", (event) => {
      const message = JSON.parse(event.data);
      charts.reset(message.columns, message.points, message.seconds);
      show(message);
    });
    source.addEventListener("tick", (event) => {
      const message = JSON.parse(event.data);
      charts.add(message.points);
      show(message);
    });
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return lost();
      askWhy();
      setTimeout(connect, 1000 * RETRY_SECONDS);
    };
  }

  page.answer = answerBlock();
  byId("look").replaceChildren(page.answer.list);
  page.answer.update(null);
  byId("filter").addEventListener("input", showFiltered);
  setInterval(() => { if (isOld()) lost(); }, 1000);
  addEventListener("pagehide", () => page.source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  connect();
  return { show };
})();
