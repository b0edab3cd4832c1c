// Formats numbers, times and durations for people. No state.
"use strict";

const format = (() => {
  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const known = (value) => value !== null && value !== undefined;

  function number(value) {
    return known(value) ? whole.format(value) : "–";
  }

  function short(value) {
    if (!known(value)) return "";
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toFixed(1)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toFixed(1)}k`;
    return size < 10 ? String(+value.toFixed(2)) : whole.format(value);
  }

  // A number with its noun, in the singular or the plural.
  function counted(value, noun) {
    return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
  }

  // Per second: with one digit after the point below 10, where a whole number would often be 0.
  function rate(value) {
    return known(value) && Math.abs(value) < 9.95 ? fine(value) : number(value);
  }

  // The next of 1, 2 or 5 times a power of ten: the end of a scale that does not change with each value.
  function ceiling(value, least) {
    const size = 10 ** Math.floor(Math.log10(Math.max(value, least)));
    return [1, 2, 5, 10].map((one) => one * size).find((one) => one >= Math.max(value, least));
  }

  // With one digit after the point below 100: seconds to drain.
  function fine(value) {
    if (!known(value)) return "–";
    return Math.abs(value) < 99.95 ? String(+value.toFixed(1)) : whole.format(value);
  }

  function time(seconds) {
    return new Date(seconds * 1000).toISOString().slice(11, 19);
  }

  // With the day if it is not that of `now`.
  function moment(seconds, now) {
    const [day, today] = [seconds, now].map((one) => new Date(one * 1000).toISOString().slice(5, 10));
    return day === today ? time(seconds) : `${day} ${time(seconds)}`;
  }

  function age(seconds) {
    if (seconds < 172800) return duration(seconds);
    return `${Math.round(seconds / 86400)} days`;
  }

  function duration(seconds) {
    if (!known(seconds)) return "–";
    if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3600).toFixed(1)} h`;
  }

  return { known, number, counted, rate, short, ceiling, fine, time, moment, age, duration };
})();
