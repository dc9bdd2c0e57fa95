// Who is signed in. The credential lives in this module's variables: in no storage, address, attribute or log.

import { ApiError, createApi, ROOT } from "./api.js";

const LINK = "sluice-link"; // a nonce, and no secret: which browser asked for a link
const LINK_SECONDS = 3600;
const EARLY_SECONDS = 60;

let key = null; // an API key
let person = null; // {token, refresh, expires} of Supabase Auth
let caller = null; // what GET /v1/me told
let config = null;
let renewal = null;
let ended = () => {};

export const api = createApi({ credential, refused });

export async function loadConfig() {
  const response = await fetch(new URL("dashboard/config.json", ROOT));
  config = await response.json();
  return config;
}

/** `listener(reason)` hears that the session is over: "signed-out", "expired" or "left". */
export const onEnd = (listener) => (ended = listener);
export const who = () => caller;

/** The key that signed in, for showing its owner how to use it; null for a person. */
export const ownKey = () => key;
export const useKey = (made) => (key ??= person ? null : made);

async function credential() {
  if (person && person.expires - Date.now() < EARLY_SECONDS * 1000) await (renewal ??= renew().finally(() => (renewal = null)));
  return person?.token ?? key;
}

function refused(credential) {
  if (caller && (credential === key || credential === person?.token)) end("expired");
}

function end(reason) {
  key = person = caller = null;
  localStorage.removeItem(LINK);
  ended(reason);
}

export const signOut = () => {
  const { token } = person ?? {};
  if (token) ask("logout?scope=local", {}, token).catch(() => {});
  end("signed-out");
};

// The browser may keep the page as it is, to show it again to whoever goes back.
addEventListener("pagehide", ({ persisted }) => persisted && (key || person) && end("left"));

async function start() {
  try {
    caller = await api.get("/v1/me");
  } catch (error) {
    key = person = null;
    throw error;
  }
  return caller;
}

export function signInByKey(text) {
  key = text.trim();
  person = null;
  return start();
}

async function ask(path, body, token) {
  const response = await fetch(`${config.auth.url}/${path}`, {
    method: "POST",
    headers: { apikey: config.auth.publishable_key, "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) },
    body: JSON.stringify(body),
    credentials: "omit",
  });
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, { message: told.msg ?? told.message ?? told.error_description ?? "Signing in by mail does not work at the moment." });
  return told;
}

/** Mails a link that leads back here, with a nonce by which this browser knows that it asked for it. */
export async function mailLink(email) {
  const nonce = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const back = new URL(location.href);
  back.hash = "";
  back.search = `?state=${nonce}`;
  await ask(`otp?redirect_to=${encodeURIComponent(back)}`, { email, create_user: false });
  localStorage.setItem(LINK, JSON.stringify({ nonce, at: Date.now() }));
}

/** Takes what a link has brought out of the address, at once. {session, error, asked: whether this browser asked for it} or null. */
export function takeLink() {
  const told = new URLSearchParams(location.hash.slice(1));
  if (!told.has("access_token") && !told.has("error_description")) return null;
  const state = new URLSearchParams(location.search).get("state");
  history.replaceState(null, "", location.pathname);
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(LINK)) ?? {};
  } catch {
    // Something else wrote it: then nobody asked.
  }
  localStorage.removeItem(LINK);
  const asked = Boolean(state) && state === kept.nonce && Date.now() - kept.at < LINK_SECONDS * 1000;
  return { error: told.get("error_description"), asked, session: told.has("access_token") ? read(Object.fromEntries(told)) : null };
}

const read = (told) => ({ token: told.access_token, refresh: told.refresh_token, expires: Date.now() + Number(told.expires_in ?? 3600) * 1000 });

export function signInAs(session) {
  person = session;
  key = null;
  return start();
}

async function renew() {
  try {
    person = read(await ask("token?grant_type=refresh_token", { refresh_token: person.refresh }));
  } catch (error) {
    // The old one may still be good for a moment; when it isn't, the API says so.
    if (error.status === 400 || error.status === 401) end("expired");
    throw error;
  }
}

/** After the signed-in key was rotated: its old secret may stop at any moment. */
export const replaceKey = (made) => (key = made);
