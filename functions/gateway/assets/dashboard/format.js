// Numbers and times as the reader's locale writes them. Money stays decimal text: it never becomes a float.

const locale = undefined; // the reader's
const cache = new Map();

function formatter(Kind, options) {
  const name = Kind.name + JSON.stringify(options);
  if (!cache.has(name)) cache.set(name, new Kind(locale, options));
  return cache.get(name);
}

const number = (value, options) => formatter(Intl.NumberFormat, options).format(value);
const usd = { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol" };

/** USD of exact decimal text, cut (never rounded up) to what is readable; small amounts keep two digits that count. */
export function money(text) {
  if (text === null || text === undefined) return "–";
  const size = Math.abs(Number(text)); // for its magnitude alone
  const digits = size >= 1 || size === 0 ? 2 : size >= 0.01 ? 4 : Math.min(10, 1 - Math.floor(Math.log10(size)) + 0);
  return number(text, { ...usd, minimumFractionDigits: 2, maximumFractionDigits: digits, roundingMode: "trunc" });
}

/** The same with every digit that there is. */
export const exactMoney = (text) => (text === null || text === undefined ? "–" : number(text, { ...usd, minimumFractionDigits: 2, maximumFractionDigits: 20 }));

const SCALE = 20;

/** Exact decimal text as a whole number of 10^-20. */
function scaled(text) {
  const [, sign, whole, part = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(String(text));
  return BigInt(sign + whole + part.padEnd(SCALE, "0"));
}

/** The exact sum of decimal texts, as text. */
export function sum(texts) {
  const total = texts.reduce((all, text) => all + scaled(text ?? "0"), 0n);
  const digits = String(total < 0n ? -total : total).padStart(SCALE + 1, "0");
  return `${total < 0n ? "-" : ""}${digits.slice(0, -SCALE)}.${digits.slice(-SCALE)}`.replace(/\.?0+$/, "");
}

export const minus = (from, what) => sum([from, String(what).startsWith("-") ? what.slice(1) : `-${what}`]);
export const compare = (one, other) => (scaled(one) < scaled(other) ? -1 : Number(scaled(one) > scaled(other)));

export const count = (value) => (value === null || value === undefined ? "–" : number(value, {}));
export const short = (value) => number(value, { notation: "compact", maximumFractionDigits: 1 });
export const shortMoney = (value) => number(value, value < 1000 ? { ...usd, minimumFractionDigits: 2, maximumFractionDigits: 4 } : { ...usd, notation: "compact", maximumSignificantDigits: 3 });

/** For columns: as many digits behind the point in each, so that they stand below each other. */
export const columnMoney = (text, digits = 4) => (text === null || text === undefined ? "–" : number(text, { ...usd, minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "trunc" }));

/** How many digits behind the point a column of amounts needs: more where all of them are small. */
export const columnDigits = (texts) => (texts.every((text) => Math.abs(Number(text ?? 0)) < 1) ? 6 : 4);
export const percent = (part, whole) => (whole ? number(part / whole, { style: "percent", maximumFractionDigits: 1 }) : "–");

export function duration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  const seconds = milliseconds / 1000;
  return seconds < 1 ? number(milliseconds, { style: "unit", unit: "millisecond", unitDisplay: "narrow", maximumFractionDigits: 0 }) : number(seconds, { style: "unit", unit: "second", unitDisplay: "narrow", maximumFractionDigits: seconds < 10 ? 2 : 0 });
}

const date = (value, options) => formatter(Intl.DateTimeFormat, options).format(new Date(value));
export const time = (value) => (value ? date(value, { dateStyle: "medium", timeStyle: "medium" }) : "–");
export const day = (value, timeZone) => (value ? date(value, { dateStyle: "medium", timeZone }) : "–");

/** How an interval of a series is called, by the clock that it was cut by. */
export function interval(value, kind, timeZone) {
  if (kind === "hour") return date(value, { hour: "numeric", minute: "2-digit", timeZone });
  if (kind === "month") return date(value, { month: "short", year: "numeric", timeZone });
  return date(value, { month: "short", day: "numeric", timeZone });
}

const STEPS = [["second", 1], ["minute", 60], ["hour", 3600], ["day", 86400], ["month", 2629800], ["year", 31557600]];

/** "3 minutes ago", "in 2 hours". */
export function ago(value) {
  if (!value) return "never";
  const seconds = (new Date(value) - Date.now()) / 1000;
  const [unit, size] = STEPS.findLast(([, least]) => Math.abs(seconds) >= least) ?? STEPS[0];
  return formatter(Intl.RelativeTimeFormat, { numeric: "auto", style: "short" }).format(Math.round(seconds / size), unit);
}

const METRICS = { requests: "Requests", tokens: "Tokens", spend_usd: "Spend" };

/** `tokens_per_day` in words. */
export function limitName(name) {
  const [, metric, per] = /^(\w+)_per_(\w+)$/.exec(name);
  return `${METRICS[metric]} per ${per}`;
}

export const limitValue = (name, value) => (name.startsWith("spend_usd") ? money(value) : count(value));
