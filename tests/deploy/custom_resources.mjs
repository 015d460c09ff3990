// Validates custom resources (a JSON list on standard input) against their projects' schemas from the packages
// @kubernetes-models/*. `node custom_resources.mjs NODE_MODULES` prints a JSON list: null, "unknown" or the error.
import { existsSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "argoproj.io": "argo-cd",
  "cert-manager.io": "cert-manager",
  "external-secrets.io": "external-secrets",
  "monitoring.coreos.com": "prometheus-operator",
  "networking.istio.io": "istio",
  "security.istio.io": "istio",
};

async function check(object) {
  const [group, version] = object.apiVersion.split("/");
  if (!PACKAGES[group]) return "unknown";
  const file = `${process.argv[2]}/@kubernetes-models/${PACKAGES[group]}/${group}/${version}/${object.kind}.js`;
  if (!existsSync(file)) return `there is no ${object.kind} in ${object.apiVersion}`;
  const model = (await import(pathToFileURL(file)))[object.kind];
  try {
    new model(object).validate();
    return null;
  } catch (error) {
    return error.message;
  }
}

const objects = JSON.parse(readFileSync(0, "utf8"));
const found = [];
for (const object of objects) found.push(await check(object));
process.stdout.write(JSON.stringify(found));
