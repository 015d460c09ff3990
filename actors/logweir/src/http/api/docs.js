// Forms for the endpoints described by openapi.json. Text is inserted as text, never as HTML.

const SHOWN_MAX = 200_000;

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function headers() {
  const token = document.getElementById("token").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** The request described by the form: a URL and its options. */
function requestOf(form, method, path, operation) {
  const values = new FormData(form);
  const request = { method, headers: headers() };
  const query = new URLSearchParams();
  let filled = path;
  for (const { name, in: location } of operation.parameters ?? []) {
    const value = values.get(name);
    if (value === "") continue;
    if (location === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
    else if (location === "header") request.headers[name] = value;
    else query.append(name, value);
  }
  if (values.get("(body)")) request.body = values.get("(body)");
  return [query.size ? `${filled}?${query}` : filled, request];
}

/** Shows the response as it arrives. A live stream ends with the next request, with `Stop`, or when it gets too long. */
async function send(event, method, path, operation, output, stop) {
  event.preventDefault();
  stop.onclick?.();
  const [url, request] = requestOf(event.target, method, path, operation);
  const abort = new AbortController();
  const show = (text) => abort.signal.aborted || (output.textContent = `${request.method} ${url}\n${text}`);
  stop.onclick = () => abort.abort();
  stop.hidden = output.hidden = false;
  show("\n…");
  try {
    const answer = await fetch(url, { ...request, signal: abort.signal });
    const head = `${answer.status} ${answer.statusText}\n\n`;
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
    const isJson = answer.headers.get("content-type")?.startsWith("application/json");
    let text = "";
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true };
      if (done) break;
      text += value;
      if (!isJson) show(head + text.slice(0, SHOWN_MAX));
      if (!isJson && text.length > SHOWN_MAX) {
        reader.cancel();
        break;
      }
    }
    show(head + (isJson ? JSON.stringify(JSON.parse(text), null, 2) : text).slice(0, SHOWN_MAX));
  } catch (error) {
    if (!abort.signal.aborted) show(`\nrequest failed: ${error.message}`);
  }
  if (!abort.signal.aborted) stop.hidden = true;
}

function input({ name, description, required }) {
  const field = element("input", { name, required: required === true });
  return element("label", {}, name, field, element("small", { textContent: description ?? "" }));
}

function section(method, path, operation) {
  const output = element("pre", { hidden: true, tabIndex: 0 });
  const inputs = (operation.parameters ?? []).map(input);
  if (operation.requestBody) {
    const small = element("small", { textContent: operation.requestBody.description ?? "" });
    inputs.push(element("label", {}, "Body", element("textarea", { name: "(body)", rows: 3 }), small));
  }
  const stop = element("button", { type: "button", textContent: "Stop", hidden: true });
  stop.addEventListener("click", () => { stop.hidden = true; });
  const form = element("form", {}, ...inputs, element("div", {}, element("button", { textContent: "Send" }), " ", stop));
  form.addEventListener("submit", (event) => send(event, method, path, operation, output, stop));
  const what = (operation.responses["200"] ?? operation.responses["101"])?.description ?? "";
  return element("details", {}, element("summary", { textContent: `${method} ${path}` }), element("p", { textContent: what }), form, output);
}

const main = document.getElementById("paths");
try {
  const { paths } = await (await fetch("openapi.json", { headers: headers() })).json();
  const tags = new Map();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      // Where both methods exist, POST is the same with the parameters as a form.
      if (method === "post" && methods.get) continue;
      const tag = operation.tags?.[0] ?? "";
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(section(method.toUpperCase(), path, operation));
    }
  }
  main.replaceChildren(...[...tags].flatMap(([tag, sections]) => [element("h2", { textContent: tag }), ...sections]));
} catch (error) {
  main.replaceChildren(element("p", { textContent: `Cannot load the API description: ${error.message}` }));
}
