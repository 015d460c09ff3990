// The query as text: its terms, how a value becomes one, and what to mark in a message. The language itself is the server's.

const FIELDS = ["service", "host", "severity"];
/** Names that mean something else than an attribute unless they stand in quotes. */
const RESERVED = [...FIELDS, "level", "message", "msg"];
const OPERATORS = ["AND", "OR", "NOT"];

const quoted = (text) => `"${text.replace(/[\\"]/g, "\\$&").replace(/\n/g, "\\n").replace(/\r/g, "\\r").replace(/\t/g, "\\t")}"`;
const bareValue = (text) => (/^[\p{L}\p{N}_][\p{L}\p{N}_.\/@:-]*$/u.test(text) && !OPERATORS.includes(text) ? text : quoted(text));
const bareName = (name, isAttribute) =>
  /^[\p{L}_@][\p{L}\p{N}_.\/@-]*$/u.test(name) && !OPERATORS.includes(name) && !(isAttribute && RESERVED.includes(name)) ? name : quoted(name);

/** The term that wants `name` to be exactly `value`. */
export function term(name, value, isAttribute = !FIELDS.includes(name)) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return `${bareName(name, isAttribute)}:${bareValue(name === "severity" && !isAttribute ? text.toLowerCase() : text)}`;
}

/** The term that wants the message to have `text` anywhere. */
export const words = (text) => (/^[\p{L}\p{N}_]+$/u.test(text) && !OPERATORS.includes(text) ? `*${text}*` : `*${quoted(text)}*`);

/** The query's terms: cut at blanks that are in no quotes and no parentheses. */
export function terms(query) {
  const found = [];
  let [from, depth, mark] = [0, 0, ""];
  for (let i = 0; i <= query.length; i += 1) {
    const letter = query[i] ?? " ";
    if (mark && i < query.length) {
      if (letter === "\\" && mark !== "`") i += 1;
      else if (letter === mark) mark = "";
    } else if ("\"'`".includes(letter)) mark = letter;
    else if (letter === "(") depth += 1;
    else if (letter === ")") depth -= 1;
    else if (i >= query.length || (depth <= 0 && /\s/.test(letter))) {
      if (i > from) found.push(query.slice(from, i));
      from = i + 1;
    }
  }
  return found;
}

const joined = (query) => (terms(query).includes("OR") ? `(${query.trim()})` : query.trim());
export const has = (query, one) => terms(query).includes(one);

/** The query without this term. */
export const without = (query, one) => terms(query).filter((known) => known !== one).join(" ");

/** The query that wants this, too; what wants the opposite goes. */
export function and(query, one) {
  const opposite = one.startsWith("-") ? one.slice(1) : `-${one}`;
  const rest = terms(query).includes("OR") ? query : has(query, opposite) ? without(query, opposite) : query.trim();
  if (has(rest, one)) return rest;
  return `${joined(rest)} ${one}`.trim();
}

const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** A regular expression with one group that finds what the query looks for in messages; null where there is nothing. */
export function marks(query) {
  const patterns = [];
  for (const one of terms(query.replace(/[()]/g, (paren, at) => (/["'`]/.test(query.slice(0, at)) ? paren : " ")))) {
    if (OPERATORS.includes(one) || /^[-!]/.test(one)) continue;
    const own = one.replace(/^(?:message|msg):(?=[^~<>=])/, "");
    const regex = /^(?:(?:message|msg)(?::|=)?)?~(["'`])(.*)\1$/s.exec(own);
    const text = /^\*?(?:(["'`])(.*)\1|([^"'`:=<>~]+|\d[^"'`=<>~]*))\*?$/s.exec(own);
    if (regex) {
      const plain = regex[2].replace(/\\(.)|\((?!\?)/gs, (all) => (all === "(" ? "(?:" : all));
      // What could take for ever on a long line is not marked.
      if (!/[*+}]\)?[*+{]|\)[*+{]|\(\?[^:]/.test(plain)) patterns.push(plain);
    } else if (text) patterns.push(escape(text[2]?.replace(/\\(["'\\`])/g, "$1") ?? text[3].replace(/\*+$/, "")));
  }
  try {
    const found = new RegExp(`(${patterns.join("|")})`, "gi");
    return patterns.length && !found.test("") ? found : null;
  } catch {
    return null; // the server's regular expressions know more than the browser's
  }
}
