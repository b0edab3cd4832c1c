// The page: follows the stream of ingest and puts what it says into words. It changes nothing of the system.
"use strict";

(() => {
  const LATE_SECONDS = 4; // without a message, after which what is shown is called old
  const RETRY_SECONDS = 2; // after the server has refused the stream
  const byId = (id) => document.getElementById(id);
  const page = { source: null, heardAt: null, lostSince: null, status: null, said: "" };

  const LEVELS = { normal: "Normal", degraded: "Degraded", critical: "Critical", unknown: "Unknown" };
  // A sign and its colour for each kind of event; its words come with it.
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
    dead_letters_replayed: ["↺", ""],
    drainer_terminated: ["■", "bad"],
  };

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // Words in which `commands` are to be recognized.
  function worded(text) {
    return text.split("`").map((part, i) => (i % 2 ? element("code", part) : part));
  }

  // --- The headline ------------------------------------------------------------------------

  function wellWords(status) {
    const admitted = charts.lately("admitted");
    const taken = format.known(admitted) ? `${format.number(admitted)} events a second are admitted` : "events are admitted";
    return `All is well: ${taken}, ${status.consumerLag === null ? "the lag is not known yet" : `${format.number(status.consumerLag)} wait to be stored`}`;
  }

  function showHeadline(status) {
    const level = { healthy: "normal" }[status.status] || status.status;
    const [first, ...rest] = status.reasons;
    const words = first ? first.what : wellWords(status);
    document.body.dataset.severity = level;
    byId("level").textContent = LEVELS[level];
    byId("headline").textContent = words;
    const look = byId("look");
    look.replaceChildren();
    const override = status.rateOverride;
    if (first) look.append(element("strong", "Look at: "), ...worded(first.lookAt));
    else if (override) look.append(element("strong", "By hand: "), `${format.number(override.rate)} events a second until ${format.time(override.until)} UTC, by ${override.by}: ${override.why}`);
    byId("more").replaceChildren(...rest.map((problem) => {
      const item = element("li");
      item.dataset.level = problem.severity;
      item.append(element("b", `${problem.what}.`), " Look at: ", ...worded(problem.lookAt));
      return item;
    }));
    const title = first ? words.split(/[:;] /)[0] : "all is well"; // a time of day has colons too
    document.title = `${LEVELS[level]}: ${title} · Sluice`;
    const icon = byId("icon");
    const wanted = icon.dataset[level];
    if (icon.getAttribute("href") !== wanted) icon.setAttribute("href", wanted);
    document.querySelector(".shape").style.backgroundImage = `url("${wanted}")`;
    announce(`${LEVELS[level]}: ${first ? first.what : "all is well"}`);
  }

  // Said aloud only when it says something else: numbers change every second.
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

  function showFlow(status) {
    const { number } = format;
    const [admitted, offered] = [charts.lately("admitted"), charts.lately("offered")];
    card("admitted", number(admitted), "/s", `of ${number(offered)} offered a second`);
    const refused = ["s429", "s503"].map((name) => charts.lately(name));
    const any = refused[1] > 0 ? "critical" : refused[0] > 0 ? "degraded" : null;
    const total = format.known(refused[0]) ? refused[0] + refused[1] : null;
    card("refused", number(total), "requests/s", `429: ${number(refused[0])}, 503: ${number(refused[1])} a second`, any);
    const [rate, full] = [status.rateLimit, status.bands.rateMax];
    const lowered = rate < full;
    card("rate", number(rate), "/s", lowered ? `of ${number(full)}: ${status.rateDecidedBy}` : status.rateDecidedBy, lowered ? (rate <= status.floorRate ? "critical" : "degraded") : null);
    bar("rate", rate / full);
    card("bucket", number(status.availablePermissions), "tokens", `of ${number(status.bucketCapacity)}; one is one event`);
    bar("bucket", status.availablePermissions / status.bucketCapacity);
  }

  function showBacklog(status) {
    const { number, duration } = format;
    const [lag, bands] = [status.consumerLag, status.bands];
    const lags = Object.values(status.lagByPartition || {});
    const level = lag > bands.lagCritical ? "critical" : lag >= bands.lagDegraded ? "degraded" : null;
    card("lag", number(lag), "events", lag === null ? "not known" : `degraded from ${format.short(bands.lagDegraded)}, critical above ${format.short(bands.lagCritical)}`, level);
    const waits = status.consumption === "paused" && lag > 0;
    const empty = waits ? "nothing, while consumption is paused" : lag === 0 ? "nothing waits" : status.secondsToEmpty !== null && status.secondsToEmpty < 2 ? "keeps up with what comes" : status.secondsToEmpty !== null ? `lag stored in about ${duration(status.secondsToEmpty)} at this pace` : lag === null ? "" : "no end of the backlog in sight";
    const stuck = status.drainRate === 0 && lag > 0;
    card("drain", number(status.drainRate), "/s", empty, stuck ? "critical" : null);
    const most = Math.max(1, ...lags);
    byId("lags").replaceChildren(...lags.map((value, partition) => {
      const item = element("li");
      const track = element("span", undefined, "bar");
      track.append(element("i"));
      track.firstChild.style.width = `${(100 * value) / most}%`;
      item.append(element("span", `p${partition}`), track, element("b", number(value)));
      return item;
    }));
  }

  function showLoop(status) {
    const BREAKER = { closed: "PostgreSQL takes what is stored", open: "nothing is stored; being tried", "half-open": "PostgreSQL is being tried now", unknown: "the control store does not say" };
    const breaker = status.circuitBreaker;
    const bad = { open: "critical", "half-open": "critical", unknown: "degraded" };
    card("breaker", breaker, "", BREAKER[breaker], bad[breaker]);
    const pauses = status.pauses;
    const held = pauses && pauses.length > 0;
    const place = (pause) => pause.partition === null ? "" : `p${pause.partition} `;
    const reasons = held ? pauses.map((pause) => `${place(pause)}${pause.reason.replace("_", " ")} since ${format.time(pause.since)}`).join("; ") : "";
    card("consumption", held && status.consumption === "running" ? "partly paused" : status.consumption, "", held ? reasons : pauses === null ? "workers keep to what they knew" : `log: ${status.eventLog === "kafka" ? "Kafka" : "Redis Streams"}`, pauses === null ? "degraded" : held ? "degraded" : null);
    const age = status.controllerAgeSeconds;
    const old = age === null || age > 3 * status.controllerPeriodSeconds;
    card("controller", age === null ? "silent" : format.duration(age), age === null ? "" : "ago", `sets the rate every ${format.duration(status.controllerPeriodSeconds)}`, old ? "degraded" : null);
    const override = status.rateOverride;
    const beneath = override && status.rateLimit < override.rate ? "; the breaker's floor comes first" : "";
    if (override) card("override", format.number(override.rate), "/s", `until ${format.time(override.until)}, by ${override.by}: ${override.why}${beneath}`, "degraded");
    else card("override", status.storeIsAway ? "unknown" : "none", "", status.storeIsAway ? "" : bad[breaker] === "critical" ? "the breaker's floor holds" : "the lag decides the rate");
  }

  // --- The events --------------------------------------------------------------------------

  function showEvents(events) {
    if (!events.length) return;
    byId("rows").replaceChildren(...events.map((event) => {
      const [sign, className] = KINDS[event.kind] || ["•", ""];
      const row = element("tr");
      const what = element("td");
      const mark = element("span", sign, `sign ${className}`);
      mark.setAttribute("aria-hidden", "true");
      what.append(mark, event.what);
      const when = element("td");
      const time = element("time", format.time(event.at));
      time.dateTime = new Date(event.at * 1000).toISOString();
      when.append(time);
      row.append(when, what, element("td", event.by), element("td", event.why));
      return row;
    }));
  }

  // --- The stream --------------------------------------------------------------------------

  function show(message) {
    const status = message.status;
    page.status = status;
    page.heardAt = Date.now();
    charts.shape(status);
    charts.draw();
    showHeadline(status);
    showFlow(status);
    showBacklog(status);
    showLoop(status);
    if (message.events) showEvents(message.events);
    byId("about").textContent = `Shown by ${status.process}; ${status.viewers} ${status.viewers === 1 ? "page looks" : "pages look"} at it.`;
    found(status);
  }

  function found(status) {
    page.lostSince = null;
    byId("lost").hidden = true;
    byId("link").dataset.state = "live";
    byId("link-words").textContent = status.storeIsAway ? "live, from one process" : `live, ${format.time(status.at)} UTC`;
  }

  function lost(words) {
    page.lostSince = page.lostSince || page.heardAt || Date.now();
    const since = format.time(page.lostSince / 1000);
    byId("lost").textContent = words ? `No live view: ${words}` : `Connection lost since ${since} UTC: what stands below is as old as that. It is tried again all the time.`;
    byId("lost").hidden = false;
    byId("link").dataset.state = "lost";
    byId("link-words").textContent = `lost since ${since}`;
    if (!document.title.startsWith("? ")) document.title = `? ${document.title}`;
  }

  // A stream that is refused comes with the reason in words, which EventSource does not tell.
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

  setInterval(() => {
    if (page.heardAt !== null && Date.now() - page.heardAt > 1000 * LATE_SECONDS) lost();
  }, 1000);
  addEventListener("pagehide", () => page.source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  connect();
})();
