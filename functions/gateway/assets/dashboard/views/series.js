// GET /v1/usage as what a chart draws.

import { count, duration, interval, money, short, shortMoney, sum } from "../format.js";

const SHOWN = 6; // groups with a colour of their own; the rest is "Others"
const number = (text) => Number(text); // for a picture alone: what is read beside it is exact

/** What can be drawn. `total` adds points up; those that can't be added have none. */
export const MEASURES = {
  spend: { label: "Spend", value: (point) => number(point.charge_usd), shown: (point) => money(point.charge_usd), total: (points) => sum(points.map((point) => point.charge_usd)), text: money, axis: shortMoney },
  requests: { label: "Requests", value: (point) => point.requests, text: count, axis: short },
  tokens: { label: "Tokens", value: (point) => point.total_tokens, text: count, axis: short },
  errors: { label: "Errors", value: (point) => point.errors, text: count, axis: short },
  latency: { label: "Latency", of: "latency_ms", text: duration, axis: duration },
  first: { label: "First token", of: "time_to_first_token_ms", text: duration, axis: duration },
};

export const RANGES = [["24h", "24 hours", "hour", 1], ["7d", "7 days", "hour", 7], ["30d", "30 days", "day", 30], ["90d", "90 days", "day", 90], ["12m", "12 months", "month", 365]];

/** The query of a range that ends now. */
export function query(range) {
  const [, , interval, days] = RANGES.find(([name]) => name === range);
  const from = interval === "month" ? null : new Date(Date.now() - days * 86_400_000 + (interval === "day" ? 86_400_000 : 0));
  return { interval, from: from && (interval === "day" ? from.toISOString().slice(0, 10) : from.toISOString()) };
}

const added = (measure, points) => (measure.total ? measure.total(points) : points.reduce((all, point) => all + measure.value(point), 0));

/** The groups of a series, the largest first: [{name, id, points}]. */
export function groups(told, measure) {
  const found = new Map();
  for (const point of told.data) {
    const name = told.group_by === null ? measure.label : (point.group ?? "Nobody answered");
    const key = `${point.group_id ?? ""} ${name}`;
    if (!found.has(key)) found.set(key, { name, id: point.group_id, points: [] });
    found.get(key).points.push(point);
  }
  const size = ({ points }) => (measure.of ? points.reduce((all, point) => all + point.requests, 0) : Number(added(measure, points)));
  return [...found.values()].sort((one, other) => size(other) - size(one));
}

export function total(told, measure) {
  return added(measure, told.data);
}

/** What chart.js draws: one series for each group, or the percentiles of a latency. */
export function drawn(told, measure) {
  const starts = [...new Set(told.data.map((point) => point.start))];
  const place = new Map(starts.map((start, index) => [start, index]));
  const label = (start) => (told.interval === "hour" && starts.length > 30 ? `${interval(start, "day", told.time_zone)}, ${interval(start, "hour", told.time_zone)}` : interval(start, told.interval, told.time_zone));
  const labels = starts.map(label);
  const spread = (points, of, shown) => {
    const values = starts.map(() => null), texts = starts.map(() => undefined);
    for (const point of points) (values[place.get(point.start)] = of(point)), (texts[place.get(point.start)] = shown?.(point));
    return { values, shown: texts };
  };
  if (measure.of && told.group_by === null) {
    return { labels, series: [["Median", "p50"], ["95th percentile", "p95"]].map(([name, part]) => ({ name, ...spread(told.data, (point) => point[measure.of][part]) })) };
  }
  const found = groups(told, measure);
  const value = measure.of ? (point) => point[measure.of].p50 : measure.value;
  const series = found.slice(0, SHOWN).map(({ name, points }) => ({ name, ...spread(points, value, measure.shown) }));
  const rest = found.slice(SHOWN);
  if (rest.length && !measure.of) {
    const merged = starts.map((start) => rest.flatMap(({ points }) => points.filter((point) => point.start === start)));
    const sums = merged.map((points) => added(measure, points));
    series.push({ name: `Others (${rest.length})`, values: sums.map(Number), shown: sums.map((told) => measure.text(told)) });
  }
  return { labels, series };
}
