// Query text: splitting it into terms, building terms from values, and finding what to highlight. The server parses the language itself.

const FIELDS = ["service", "host", "severity"];
/** Names that refer to a built-in field, not to an attribute, unless quoted. */
const RESERVED = [...FIELDS, "level", "message", "msg"];
const OPERATORS = ["AND", "OR", "NOT"];

const quoted = (text) => `"${text.replace(/[\\"]/g, "\\$&").replace(/\n/g, "\\n").replace(/\r/g, "\\r").replace(/\t/g, "\\t")}"`;
const bareValue = (text) => (/^[\p{L}\p{N}_][\p{L}\p{N}_.\/@:-]*$/u.test(text) && !OPERATORS.includes(text) ? text : quoted(text));
const bareName = (name, isAttribute) =>
  /^[\p{L}_@][\p{L}\p{N}_.\/@-]*$/u.test(name) && !OPERATORS.includes(name) && !(isAttribute && RESERVED.includes(name)) ? name : quoted(name);

/** Returns the term that matches records whose `name` equals `value`. */
export function term(name, value, isAttribute = !FIELDS.includes(name)) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return `${bareName(name, isAttribute)}:${bareValue(name === "severity" && !isAttribute ? text.toLowerCase() : text)}`;
}

/** Returns the term that matches messages containing `text`. */
export const containsTerm = (text) => (/^[\p{L}\p{N}_]+$/u.test(text) && !OPERATORS.includes(text) ? `*${text}*` : `*${quoted(text)}*`);

/** Splits a query into terms at whitespace outside of quotes and parentheses. */
export function terms(query) {
  const found = [];
  let [from, depth, quote] = [0, 0, ""];
  for (let i = 0; i <= query.length; i += 1) {
    const char = query[i] ?? " ";
    if (quote && i < query.length) {
      if (char === "\\" && quote !== "`") i += 1;
      else if (char === quote) quote = "";
    } else if ("\"'`".includes(char)) quote = char;
    else if (char === "(") depth += 1;
    else if (char === ")") depth -= 1;
    else if (i >= query.length || (depth <= 0 && /\s/.test(char))) {
      if (i > from) found.push(query.slice(from, i));
      from = i + 1;
    }
  }
  return found;
}

const joined = (query) => (terms(query).includes("OR") ? `(${query.trim()})` : query.trim());
export const hasTerm = (query, one) => terms(query).includes(one);

/** Returns the query without this term. */
export const removeTerm = (query, one) => terms(query).filter((known) => known !== one).join(" ");

/** Returns the query with this term added and its negation removed. */
export function addTerm(query, one) {
  const opposite = one.startsWith("-") ? one.slice(1) : `-${one}`;
  const rest = terms(query).includes("OR") ? query : hasTerm(query, opposite) ? removeTerm(query, opposite) : query.trim();
  if (hasTerm(rest, one)) return rest;
  return `${joined(rest)} ${one}`.trim();
}

const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** Returns a regular expression with one group that matches the text the query searches for; null if there is none. */
export function highlightPattern(query) {
  const patterns = [];
  for (const one of terms(query.replace(/[()]/g, (paren, at) => (/["'`]/.test(query.slice(0, at)) ? paren : " ")))) {
    if (OPERATORS.includes(one) || /^[-!]/.test(one)) continue;
    const own = one.replace(/^(?:message|msg):(?=[^~<>=])/, "");
    const regex = /^(?:(?:message|msg)(?::|=)?)?~(["'`])(.*)\1$/s.exec(own);
    const text = /^\*?(?:(["'`])(.*)\1|([^"'`:=<>~]+|\d[^"'`=<>~]*))\*?$/s.exec(own);
    if (regex) {
      const plain = regex[2].replace(/\\(.)|\((?!\?)/gs, (all) => (all === "(" ? "(?:" : all));
      // Patterns prone to catastrophic backtracking on a long line are not highlighted.
      if (!/[*+}]\)?[*+{]|\)[*+{]|\(\?[^:]/.test(plain)) patterns.push(plain);
    } else if (text) patterns.push(escape(text[2]?.replace(/\\(["'\\`])/g, "$1") ?? text[3].replace(/\*+$/, "")));
  }
  try {
    const found = new RegExp(`(${patterns.join("|")})`, "gi");
    return patterns.length && !found.test("") ? found : null;
  } catch {
    return null; // the server's syntax has features that the browser's lacks
  }
}
