// The charts: uPlot's options, and the columns that it draws. Lines differ by dash as well as by colour.
"use strict";

const charts = (() => {
  const GAP_SECONDS = 5;
  const SHORTEST_SECONDS = 60; // the shortest period that a chart shows
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // Each chart: the units of its axes, its lines (label, column, unit of its values, colour, dash, width), and whether it
  // has horizontal levels. A line with `isRight` has the axis on the right.
  const PLANS = {
    rate: {
      units: ["events/s"],
      lines: [
        { label: "rate limit", column: "rate", colour: "muted", dash: [6, 4], stepped: true },
        { label: "rate limit of the shadow", column: "shadow", colour: "degraded", dash: [8, 3, 2, 3], stepped: true, ofShadow: true },
        { label: "offered", column: "offered", colour: "violet", dash: [2, 3] },
        { label: "admitted", column: "admitted", colour: "blue", width: 2, fill: true },
      ],
    },
    lag: {
      units: ["events"],
      lines: [{ label: "all partitions", column: "lag", unit: "events", colour: "blue", width: 2, fill: true }],
      levels: true,
    },
    // Shown if the thresholds of the rate policy are about another measure than the lag.
    policy: {
      units: [""],
      lines: [{ label: "now", column: "measure", colour: "blue", width: 2, fill: true, isFine: true }],
      levels: true,
    },
    answers: {
      units: ["requests/s"],
      lines: [
        { label: "202 accepted", column: "s202", colour: "normal", width: 2 },
        { label: "429 refused", column: "s429", colour: "degraded", dash: [6, 3] },
        { label: "503 unavailable", column: "s503", colour: "critical", dash: [2, 3] },
        { label: "other 4xx", column: "s4xx", colour: "violet", dash: [8, 3, 2, 3] },
        { label: "other 5xx", column: "s5xx", colour: "muted", dash: [1, 4] },
      ],
    },
    drain: {
      units: ["events/s", "tokens"],
      lines: [
        { label: "stored", column: "drained", colour: "blue", width: 2, fill: true },
        { label: "tokens, on the right", column: "tokens", unit: "tokens", isRight: true, colour: "muted", dash: [6, 4] },
      ],
    },
  };

  const LIVE = { name: "", words: "15 minutes", seconds: 900 };
  // `longer`: the rows of a longer span, which take the place of the live ones. The newest values are always the live ones.
  const state = { columns: [], rows: [], longer: null, span: LIVE, levels: {}, shadow: false, partitions: 0, plots: {}, hovered: null, measure: "" };
  const at = (name) => state.columns.indexOf(name);

  function reset(columns, rows, seconds) {
    LIVE.seconds = seconds;
    Object.assign(state, { columns, rows: [] });
    add(rows);
  }

  // Shows the rows of a longer span; null shows the live ones again. Their columns are those of the stream.
  function showSpan(span, rows) {
    Object.assign(state, { span: span || LIVE, longer: rows, hovered: null });
    document.getElementById("figure-policy").hidden = Boolean(rows) || !state.caption;
    rebuild();
  }

  const shownRows = () => state.longer || state.rows;

  // A row of nulls fills a gap in the history, so that no line crosses the gap.
  function add(rows) {
    for (const row of rows) {
      let last = state.rows[state.rows.length - 1];
      if (last && row[0] < last[0] - GAP_SECONDS) { // the clock was set back: what was drawn after this is in the future
        state.rows = state.rows.filter((one) => one[0] < row[0]);
        last = state.rows[state.rows.length - 1];
      }
      if (last && row[0] <= last[0]) continue;
      if (last && row[0] - last[0] > GAP_SECONDS) {
        state.rows.push([last[0] + 1, ...Array(state.columns.length - 1).fill(null)]);
      }
      state.rows.push(row);
    }
    const oldest = state.rows.length ? state.rows[state.rows.length - 1][0] - LIVE.seconds : 0;
    while (state.rows.length && state.rows[0][0] < oldest) state.rows.shift();
  }

  function latest(name) {
    const place = at(name);
    for (let i = state.rows.length - 1; i >= 0 && i > state.rows.length - 6; i--) {
      if (format.known(state.rows[i][place])) return state.rows[i][place];
    }
    return null;
  }

  // The mean of the last seconds, which varies less than the last value.
  function lately(name, seconds = 5) {
    const place = at(name);
    const values = state.rows.slice(-seconds).map((row) => row[place]).filter(format.known);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  function linesOf(name) {
    const plan = PLANS[name];
    if (name !== "lag" || state.partitions < 2) return plan.lines.filter((line) => !line.ofShadow || state.shadow);
    const each = Array.from({ length: state.partitions }, (_, i) => ({
      label: `partition ${i}`, partition: i, colour: "muted", dash: [1 + i, 2 + (i % 3)], width: 1, quiet: i > 0, isSample: i === 0,
    }));
    return [...each, ...plan.lines];
  }

  function values(line) {
    if (line.partition === undefined) {
      const place = at(line.column);
      return shownRows().map((row) => row[place]);
    }
    const place = at("lags");
    return shownRows().map((row) => (row[place] ? row[place][line.partition] : null));
  }

  // Shades the seconds in which nothing was consumed.
  function shade(plot) {
    const [breaker, paused] = [at("breaker"), at("paused")];
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = css("shade");
    let from = null;
    const fill = (to) => {
      const left = Math.max(bbox.left, plot.valToPos(from, "x", true));
      const right = Math.min(bbox.left + bbox.width, plot.valToPos(to, "x", true));
      if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
    };
    const rows = shownRows();
    for (const row of rows) {
      const held = row[paused] === true || row[breaker] === "open" || row[breaker] === "half-open";
      if (held && from === null) from = row[0];
      if (!held && from !== null) { fill(row[0]); from = null; }
    }
    if (from !== null) fill(rows[rows.length - 1][0]);
    ctx.restore();
  }

  function drawLevels(plot, name) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.font = `600 ${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    for (const [word, value, colour, dash] of state.levels[name] || []) {
      const y = Math.round(plot.valToPos(value, "y", true));
      ctx.strokeStyle = ctx.fillStyle = css(colour);
      ctx.setLineDash(dash.map((part) => part * devicePixelRatio));
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.fillText(word, bbox.left + 6 * devicePixelRatio, y - 4 * devicePixelRatio);
    }
    ctx.restore();
  }

  // With seconds only if labels in minutes would repeat; a day at its beginning, if several are shown.
  function clock(plot, seconds) {
    const { min, max } = plot.scales.x;
    const day = new Date(seconds * 1000).toISOString();
    if (max - min > 86400 && day.slice(11, 16) === "00:00") return day.slice(5, 10);
    return format.time(seconds).slice(0, max - min < 400 ? 8 : 5);
  }

  function options(name, lines, width, height) {
    const axis = { stroke: css("muted"), grid: { stroke: css("grid"), width: 1 }, ticks: { stroke: css("grid") }, font: "11px system-ui, sans-serif" };
    const highest = PLANS[name].levels ? () => Math.max(0, ...(state.levels[name] || []).map((level) => level[1] * 1.12)) : () => 0;
    const right = lines.some((line) => line.isRight);
    const [unit, rightUnit] = units(name);
    const yAxis = (label) => ({ ...axis, size: 54, label, labelSize: 16, labelGap: 0, labelFont: axis.font, values: (_, marks) => marks.map(format.short) });
    return {
      width, height, legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false }, sync: { key: "charts" } },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: {
        // A short history fills the chart too.
        x: { time: true, range: (_, low, high) => [Math.max(high - state.span.seconds, Math.min(low, high - SHORTEST_SECONDS)), high] },
        y: { range: (_, _low, high) => [0, Math.max(1, (high || 0) * 1.08, highest())] },
        ...(right ? { right: { range: (_, _low, high) => [0, Math.max(1, (high || 0) * 1.08)] } } : {}),
      },
      axes: [
        { ...axis, size: 30, space: 70, values: (plot, times) => times.map((t) => clock(plot, t)) },
        yAxis(unit),
        ...(right ? [{ ...yAxis(rightUnit), scale: "right", side: 1, grid: { show: false } }] : []),
      ],
      series: [
        {},
        ...lines.map((line) => ({
          label: line.label, stroke: css(line.colour), width: line.width || 1.5, dash: line.dash, scale: line.isRight ? "right" : "y",
          fill: line.fill ? css(line.colour) + "22" : undefined, points: { show: false }, spanGaps: false,
          paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        })),
      ],
      hooks: { drawClear: [shade], draw: PLANS[name].levels ? [(plot) => drawLevels(plot, name)] : [], setCursor: [hover] },
    };
  }

  // The units of a chart's axes. That of the rate policy's own measure is in its explanation.
  function units(name) {
    return name === "policy" ? [state.measure] : PLANS[name].units;
  }

  // All charts show the values of the hovered second; without one, those of now.
  function hover(plot) {
    const { idx, left } = plot.cursor;
    const found = left < 0 || idx === null || idx === undefined ? null : plot.data[0][idx];
    if (found === state.hovered) return;
    state.hovered = found === undefined ? null : found;
    tellAll();
  }

  function moveTo(place) {
    const times = shownRows().map((row) => row[0]);
    const seconds = times[Math.max(0, Math.min(times.length - 1, place))];
    for (const name of shown()) {
      const { plot } = state.plots[name];
      plot.setCursor({ left: seconds === undefined ? -10 : plot.valToPos(seconds, "x"), top: seconds === undefined ? -10 : 10 });
    }
    state.hovered = seconds === undefined ? null : seconds;
    tellAll();
  }

  // The keys of a slider: arrows by a second (or a step), Page Up and Page Down by sixty, Home and End, Escape for now.
  function key(event, name) {
    const last = shownRows().length - 1;
    const found = shownRows().findIndex((row) => row[0] === state.hovered);
    const here = found < 0 ? last : found;
    const places = { ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - 60, PageDown: here + 60, Home: 0, End: last, Escape: NaN };
    if (!(event.key in places)) return;
    event.preventDefault();
    moveTo(places[event.key]);
    document.getElementById("announce").textContent = `${state.hovered === null ? "now" : moment(state.hovered)}: ${told(name).join(", ")}`;
  }

  const moment = (seconds) => format.moment(seconds, Date.now() / 1000);

  function legend(name, lines) {
    const list = document.getElementById(`legend-${name}`);
    const when = document.createElement("li");
    when.className = "when";
    list.replaceChildren(when, ...lines.filter((line) => !line.quiet).map((line) => {
      const item = document.createElement("li");
      item.innerHTML = '<svg viewBox="0 0 26 8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4"/></svg><span></span><b></b>';
      const stroke = item.querySelector("line");
      stroke.setAttribute("stroke", css(line.colour));
      stroke.setAttribute("stroke-width", "2.5");
      if (line.dash) stroke.setAttribute("stroke-dasharray", line.dash.join(" "));
      item.querySelector("span").textContent = line.isSample ? "one partition each" : line.label;
      return item;
    }));
  }

  // The value of a line at the hovered second, or now, with its unit.
  function worth(line) {
    if (line.isSample) return "";
    const unit = line.isFine ? state.measure : line.unit || "/s";
    const row = state.hovered === null ? null : shownRows().find((one) => one[0] === state.hovered);
    const isLevel = ["rate", "shadow", "lag", "tokens", "measure"].includes(line.column);
    const value = row ? row[at(line.column)] : isLevel ? latest(line.column) : lately(line.column);
    const show = line.isFine ? format.fine : isLevel ? format.number : format.rate;
    return `${show(value)} ${unit}`.trim();
  }

  function told(name) {
    return state.plots[name].lines.filter((line) => !line.quiet && !line.isSample).map((line) => `${line.label} ${worth(line)}`);
  }

  function tell(name) {
    const list = document.getElementById(`legend-${name}`);
    const shownLines = state.plots[name].lines.filter((line) => !line.quiet);
    list.querySelector(".when").textContent = state.hovered === null ? "" : moment(state.hovered);
    list.querySelectorAll("b").forEach((value, i) => { value.textContent = worth(shownLines[i]); });
  }

  function tellAll() {
    for (const name of shown()) if (state.plots[name]) tell(name);
  }

  function build(name) {
    const holder = document.getElementById(`chart-${name}`);
    const lines = linesOf(name);
    if (state.plots[name]) state.plots[name].plot.destroy();
    const plot = new uPlot(options(name, lines, holder.clientWidth, holder.clientHeight), [[], ...lines.map(() => [])], holder);
    holder.setAttribute("role", "img");
    holder.tabIndex = 0;
    holder.onkeydown = (event) => key(event, name);
    state.plots[name] = { plot, lines };
    legend(name, lines);
  }

  function shown() {
    return Object.keys(PLANS).filter((name) => {
      const holder = document.getElementById(`chart-${name}`);
      return !holder.closest("figure").hidden && (holder.closest("details") || { open: true }).open;
    });
  }

  function draw() {
    const times = shownRows().map((row) => row[0]);
    for (const name of shown()) {
      if (!state.plots[name]) build(name);
      const { plot, lines } = state.plots[name];
      plot.setData([times, ...lines.map(values)]);
      tell(name);
      const holder = document.getElementById(`chart-${name}`);
      holder.dataset.points = times.length;
      holder.setAttribute("aria-label", `Chart of ${state.span.words}; arrow keys read it; now: ${told(name).join(", ")}`);
    }
  }

  function rebuild() {
    for (const name of shown()) build(name);
    draw();
  }

  // The lag chart is built from the thresholds and partitions.
  function shape(status) {
    const DASHES = { degraded: [6, 4], critical: [2, 3] };
    const { thresholds } = status.ratePolicy;
    const levels = (isOfLag) => thresholds
      .filter((one) => (one.measure === "lag") === isOfLag)
      .map((one) => [policies.levelWords(one) + (isOfLag ? " events" : ""), one.value, one.mode, DASHES[one.mode] || []]);
    const target = policies.target(status.ratePolicy);
    const targets = target ? [[policies.words(target), target.value, "normal", []]] : [];
    state.levels = { lag: levels(true), policy: [...targets, ...levels(false)] };
    const caption = policies.caption(status.ratePolicy);
    state.measure = policies.unit(status.ratePolicy);
    const figure = document.getElementById("figure-policy");
    state.caption = caption;
    figure.hidden = !caption || Boolean(state.longer);
    document.getElementById("caption-policy").textContent = caption;
    const shadow = Boolean(status.ratePolicy.shadow);
    if (shadow !== state.shadow) {
      state.shadow = shadow;
      if (state.plots.rate) build("rate");
    }
    const partitions = status.lagByPartition ? Object.keys(status.lagByPartition).length : state.partitions;
    if (partitions !== state.partitions) {
      state.partitions = partitions;
      if (state.plots.lag) build("lag");
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(rebuild, 150); });
  const more = document.getElementById("more-charts");
  more.open = !matchMedia("(max-width: 40rem)").matches; // on a phone the control events come sooner
  more.addEventListener("toggle", () => { if (more.open) rebuild(); });
  return { reset, add, draw, showSpan, shape, latest, lately, at, units, rows: () => state.rows };
})();
