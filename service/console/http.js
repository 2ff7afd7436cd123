// The service's routes, asked with the key that the page holds.

let key = "";
let onRefused = () => {};

/** The key lives in this variable alone: no storage, no cookie, no address. */
export const setKey = (value) => {
  key = value;
};
export const hasKey = () => key !== "";
export const whenRefused = (then) => {
  onRefused = then;
};

/** What the service says is wrong: an RFC 9457 problem. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || `HTTP ${status}`);
    this.title = document.title;
    this.status = status;
    this.nearest = document.nearest || [];
  }
}

/** Ask a route; what comes back is the response, or a Problem is thrown. */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (key) sent.Authorization = `Bearer ${key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "No connection", detail: "The service does not answer." }, 0);
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  const problem = new Problem(document, response.status);
  if (response.status === 401 || response.status === 403) onRefused(problem);
  throw problem;
}

export const read = async (path, options) => (await ask(path, options)).json();

/** A path of parts that may hold anything. */
export const pathOf = (...parts) =>
  "/" + parts.map((part) => encodeURIComponent(part).replaceAll("%40", "@")).join("/");
