// The relay's API: JSON once, Server-Sent Events for what happens.
export class ApiError extends Error {
  constructor(problem) {
    super(problem.message);
    this.code = problem.code;
    this.field = problem.field;
  }
}

export async function get(path, params, signal) {
  let response;
  try {
    response = await fetch(`${path}${params ? `?${params}` : ""}`, { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ code: "unreachable", message: "The relay does not answer. Trying again …" });
  }
  const body = await response.json().catch(() => ({ error: { code: "invalid", message: response.statusText } }));
  if (!response.ok) throw new ApiError(body.error);
  return body;
}

// Calls `handlers[event](data)`; `handlers.state(connected)` tells whether the stream stands. Returns how to close it.
export function follow(path, params, handlers) {
  let source = null;
  let timer = 0;
  let closed = false;
  const open = () => {
    source = new EventSource(`${path}?${params}`);
    source.onopen = () => handlers.state?.(true);
    source.onerror = () => {
      handlers.state?.(false);
      if (source.readyState === EventSource.CLOSED && !closed) timer = setTimeout(open, 3000);
    };
    for (const name of Object.keys(handlers)) {
      if (name !== "state") source.addEventListener(name, (event) => handlers[name](JSON.parse(event.data)));
    }
  };
  open();
  // A page that the browser keeps for "back" would hold its connections, and there are only six of them.
  const leave = () => source.close();
  const comeBack = ({ persisted }) => persisted && open();
  addEventListener("pagehide", leave);
  addEventListener("pageshow", comeBack);
  return () => {
    closed = true;
    clearTimeout(timer);
    source.close();
    removeEventListener("pagehide", leave);
    removeEventListener("pageshow", comeBack);
  };
}
