// Asks again from time to time: never while nobody looks, never twice at once, more seldom while it fails.

const EVERY = 15_000;
const MOST = 300_000;

/** Runs `task(signal)` now and every 15 s. Returns {stop, now}. A failed run is the task's own to show. */
export function poll(task, { every = EVERY } = {}) {
  const control = new AbortController();
  let timer, running = false, wait = every, due = 0, again = false;

  async function run() {
    clearTimeout(timer);
    if (control.signal.aborted) return;
    if (running) return void (again = true);
    if (document.hidden) return void (due = 0); // at once, when somebody looks again
    running = true;
    try {
      await task(control.signal);
      wait = every;
    } catch (error) {
      wait = Math.min(MOST, Math.max(wait * 2, (error.retryAfter ?? 0) * 1000));
    }
    running = false;
    due = Date.now() + wait;
    if (again) return void ((again = false), run());
    if (!control.signal.aborted) timer = setTimeout(run, wait);
  }

  const seen = () => !document.hidden && Date.now() >= due && run();
  document.addEventListener("visibilitychange", seen);
  run();
  return {
    now: run,
    stop() {
      control.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    },
  };
}
