// What the page says of a rate policy, from its explanation alone: its figures, thresholds and scale. No state.
"use strict";

const policies = (() => {
  const CAPACITY = "capacity_events_per_second";
  const ENOUGH = 0.9; // of the capacity: a rate follows it within a few per cent

  const figure = (policy, name) => policy.figures.find((one) => one.name === name && one.partition === null);

  // The threshold whose measure is not the lag: then the policy has a measure of its own.
  const own = (policy) => policy.thresholds.find((one) => one.measure !== "lag");

  // The figure that the thresholds are about; undefined if that is the lag, or unknown.
  function measured(policy) {
    const threshold = own(policy);
    return threshold && figure(policy, threshold.measure);
  }

  // What the policy aims at, in the unit of its measure.
  function target(policy) {
    const threshold = own(policy);
    return threshold && policy.figures.find((one) => one.label === "target" && one.unit === threshold.unit);
  }

  const words = (one) => `${one.label} ${format.fine(one.value)} ${one.unit}`;

  const levelWords = (one) => (one.measure === "lag" ? `${one.label} ${format.number(one.value)}` : words(one));

  // Below the lag: the thresholds on it, or what the policy measures instead of it.
  function backlogWords(policy) {
    const found = measured(policy);
    const aim = target(policy);
    if (found) return [words(found), ...(aim ? [words(aim)] : []), ...policy.thresholds.map(levelWords)].join(", ");
    const levels = policy.thresholds.filter((one) => one.measure === "lag");
    return levels.map((one) => `${one.label} ${format.short(one.value)}`).join(", ") || "not stored yet";
  }

  // The unit of the policy's own measure; empty if that is the lag.
  function unit(policy) {
    const threshold = own(policy);
    return threshold ? threshold.unit : "";
  }

  function caption(policy) {
    const threshold = own(policy);
    if (!threshold) return "";
    const found = measured(policy);
    const name = found ? found.label : threshold.measure.replaceAll("_", " ");
    return `${name[0].toUpperCase()}${name.slice(1)}, ${threshold.unit}, with the thresholds of the rate policy`;
  }

  // What a rate is compared with: the capacity that the policy measured, else the highest rate. A highest rate that is
  // only for safety says nothing about the present one.
  function scale(policy, rate, sink) {
    const capacity = figure(policy, CAPACITY);
    if (!capacity) return { full: policy.rateMax, isLowered: rate < policy.rateMax, of: format.number(policy.rateMax) };
    const full = Math.max(1, capacity.value);
    return { full, isLowered: rate < ENOUGH * full, of: `${format.number(full)} that ${sink} stores` };
  }

  // How the rate is decided, and what the shadow policy would do, with its reason.
  function sentence(policy) {
    const name = (one) => one.name.replace("_", " ");
    const { shadow } = policy;
    const why = shadow && shadow.reason ? ` (${shadow.reason})` : "";
    const beside = shadow ? ` The shadow policy ${name(shadow)} would admit at most ${format.number(shadow.rate)} events a second${why}.` : "";
    return `Rate policy ${name(policy)}: ${policy.sentence}.${beside}`;
  }

  return { measured, target, words, levelWords, backlogWords, caption, unit, scale, sentence };
})();
