// Calls of the gateway's own API, at the address that this page came from.

/** Where the routes begin: API Gateway's stage stands before them. */
export const ROOT = new URL("../../../", import.meta.url);
const PATIENCE = 30; // seconds that a refused read waits by itself
const TRIES = 3;

/** What the API refused, in the words of the contract. */
export class ApiError extends Error {
  constructor(status, { message, code = null, param = null } = {}, requestId = null, retryAfter = null) {
    super(message ?? "The gateway gave no usable answer.");
    Object.assign(this, { status, code, param, requestId, retryAfter });
  }
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

function address(path, params = {}) {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of Object.entries(params)) if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  return url;
}

async function fault(response) {
  const told = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("retry-after"));
  return new ApiError(response.status, told.error, response.headers.get("x-request-id"), wait > 0 ? wait : null);
}

/** `credential()` gives what is sent, `refused(credential)` hears of a 401. */
export function createApi({ credential, refused }) {
  async function send(method, path, { params, body, signal, headers, as } = {}) {
    const bearer = as ?? (await credential());
    let response;
    try {
      response = await fetch(address(path, params), {
        method,
        signal,
        headers: { authorization: `Bearer ${bearer}`, ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
        body: body === undefined || body instanceof Blob ? body : JSON.stringify(body),
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, { message: "The gateway can't be reached. Is there a connection?" });
    }
    if (response.ok) return response;
    const error = await fault(response);
    if (error.status === 401 && !as) refused(bearer);
    throw error;
  }

  async function read(path, params, { signal } = {}) {
    for (let turn = 1; ; turn++) {
      try {
        const response = await send("GET", path, { params, signal });
        return await response.json();
      } catch (error) {
        const waits = [429, 503].includes(error.status) && error.retryAfter !== null && error.retryAfter <= PATIENCE;
        if (!waits || turn === TRIES) throw error;
        await pause(error.retryAfter, signal);
      }
    }
  }

  const write = (method) => async (path, body, options) => (await send(method, path, { body, ...options })).json();

  return {
    get: read,
    post: write("POST"),
    patch: write("PATCH"),
    delete: write("DELETE"),
    /** The response itself: for streams and files. */
    send,
  };
}

/** The events of a server-sent stream, as the text of their data. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    await reader.cancel();
  }
}
