// Forms for the paths that openapi.json describes. Texts go in as text, never as HTML.

const SHOWN_MAX = 200_000;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function headers() {
  const token = document.getElementById("token").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function send(event, path, output) {
  event.preventDefault();
  const given = [...new FormData(event.target)].filter(([, value]) => value !== "");
  const url = `${path}?${new URLSearchParams(given)}`;
  output.hidden = false;
  output.textContent = `GET ${url}\n\n…`;
  try {
    const answer = await fetch(url, { headers: headers() });
    let text = await answer.text();
    if (answer.headers.get("content-type")?.startsWith("application/json")) {
      text = JSON.stringify(JSON.parse(text), null, 2);
    }
    output.textContent = `GET ${url}\n${answer.status} ${answer.statusText}\n\n${text.slice(0, SHOWN_MAX)}`;
  } catch (error) {
    output.textContent = `GET ${url}\n\nno answer: ${error.message}`;
  }
}

function section(path, { get }) {
  const output = element("pre", { hidden: true, tabIndex: 0 });
  const inputs = (get.parameters ?? []).map(({ name, description, required }) =>
    element("label", {}, name, element("input", { name, required: required === true }), element("small", { textContent: description ?? "" })));
  const form = element("form", {}, ...inputs, element("button", { textContent: "Send" }));
  form.addEventListener("submit", (event) => send(event, path, output));
  return element("details", {}, element("summary", { textContent: `GET ${path}` }), form, output);
}

const main = document.getElementById("paths");
try {
  const { paths } = await (await fetch("openapi.json", { headers: headers() })).json();
  main.replaceChildren(...Object.entries(paths).map(([path, described]) => section(path, described)));
} catch (error) {
  main.replaceChildren(element("p", { textContent: `The description cannot be read: ${error.message}` }));
}
