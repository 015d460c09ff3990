"""Checks everything under deploy/ for consistency, with itself and with the program.

    checks.py --program LOGWEIR [--node-modules DIR]     runs every check; prints findings and exits 1 if there are any
    checks.py … --mutations                              breaks a copy in one place at a time, which its check must detect

Needs a renderer (`kubectl` 1.27 or newer, or `kustomize` 5) and `promtool`; a missing tool is reported and its checks
are skipped.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import compose_spec
import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KUBERNETES = "1.37"

# Renderings: the overlays, and the production overlay with its alternatives.
STANDING = ["overlays/dev", "overlays/production", "overlays/node-agent", "velero", "jobs/drain-journal", "jobs/restore"]
VARIANTS = {
    "production with Istio": {"add": ["istio"]},
    "production with Linkerd": {"add": ["linkerd"]},
    "production with a load balancer and the CSI driver": {
        "add": ["load-balancer", "secrets-store-csi"],
        "drop": ["ingress", "external-secrets"],
    },
}
STACKS = {"overlays/dev", "overlays/production", *VARIANTS}

# Required connections, by app.kubernetes.io/name and port. All others must be denied.
EDGES = {
    ("gateway", "processor", 8080),
    ("producer", "processor", 8080),
    ("processor", "database", 5432),
    ("processor", "redis", 6379),
    ("gateway", "database", 5432),
    ("gateway", "redis", 6379),
    ("gateway", "pgbouncer", 6432),
    ("pgbouncer", "database", 5432),
    ("pgbouncer", "database-replica", 5432),
    ("database-replica", "database", 5432),
    ("backup", "database", 5432),
    ("postgres-exporter", "database", 5432),
}
# Required connections from other namespaces.
FROM_OUTSIDE = {
    ("ingress-nginx", "processor", 8080),
    ("ingress-nginx", "gateway", 8080),
    ("monitoring", "processor", 9600),
    ("monitoring", "gateway", 9600),
    ("monitoring", "postgres-exporter", 9187),
}
# Without a port to probe; these exit when they cannot work.
UNPROBED = {"producer", "wal-archiver"}
# Reads files on the node that belong to root.
ROOT = {"node-agent"}


class Wrong(list):
    """Findings, each with its check."""

    def say(self, check, where, what):
        self.append((check, where, what))


# ---------------------------------------------------------------------------------------------------------------- rendering


def renderer():
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True).stdout
        found = re.search(r"Kustomize Version: v(\d+)", version)
        if found and int(found[1]) >= 5:
            return ["kubectl", "kustomize"]
    return None


def render(command, folder):
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def rendered(deploy, wrong):
    command = renderer()
    if not command:
        print("NOT CHECKED: rendering manifests needs kustomize 5 or kubectl 1.27", file=sys.stderr)
        return {}
    root = deploy / "kubernetes"
    folders = {name: root / name for name in STANDING}
    production = yaml.safe_load((root / "overlays/production/kustomization.yaml").read_text())
    made = root / "overlays/.variants"
    for number, (name, change) in enumerate(VARIANTS.items()):
        components = [c for c in production["components"] if Path(c).name not in change.get("drop", [])]
        components += [f"../../components/{added}" for added in change["add"]]
        folder = made / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        kustomization = {
            **production,
            "resources": [f"../{r}" for r in production["resources"]],
            "components": [f"../{c}" for c in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        folders[name] = folder
    found = {}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rendering = {name: pool.submit(render, command, folder) for name, folder in folders.items()}
            for name, documents in rendering.items():
                try:
                    found[name] = documents.result()
                except RuntimeError as error:
                    wrong.say("render", name, str(error))
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return found


# ------------------------------------------------------------------------------------------------------------------ schemas


def is_custom(document):
    group = document["apiVersion"].split("/")[0] if "/" in document["apiVersion"] else ""
    return "." in group and (not group.endswith(".k8s.io") or "snapshot" in group or "secrets-store" in group)


# Results by document: many appear in several renderings, and most in every mutation.
SEEN = {}


def schemas(name, documents, node_modules, wrong):
    """Returns the custom resources without a schema."""
    texts = [json.dumps(document, sort_keys=True) for document in documents]
    new = {text: document for text, document in zip(texts, documents, strict=True) if text not in SEEN}
    custom = [text for text, document in new.items() if is_custom(document)]
    for text in new.keys() - set(custom):
        SEEN[text] = built_in(new[text])
    answers = ["unknown"] * len(custom)
    if custom and node_modules:
        command = ["node", str(HERE / "custom_resources.mjs"), str(node_modules)]
        given = json.dumps([new[text] for text in custom])
        answers = json.loads(subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout)
    SEEN.update(zip(custom, answers, strict=True))
    unknown = set()
    for text, document in zip(texts, documents, strict=True):
        if SEEN[text] == "unknown":
            unknown.add(f"{document['apiVersion'].split('/')[0]} {document['kind']}")
        elif SEEN[text]:
            wrong.say("schema", f"{name}: {label(document)}", SEEN[text])
    return unknown


def built_in(document):
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{error.path}: {error.message}"
    return None


# ----------------------------------------------------------------------------------------------------------------- queries


def label(document):
    return f"{document['kind']}/{document['metadata']['name']}"


def kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def template(document):
    """Returns the pod template of a workload."""
    if document["kind"] == "CronJob":
        return document["spec"]["jobTemplate"]["spec"]["template"]
    return document["spec"]["template"]


def workloads(documents):
    return kind(documents, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


def app(document):
    return template(document)["metadata"]["labels"].get("app.kubernetes.io/name", "")


def containers(document):
    spec = template(document)["spec"]
    return spec.get("initContainers", []), spec["containers"]


def selects(selector, labels):
    """Returns whether a label selector matches these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        inside = labels.get(expression["key"]) in (expression.get("values") or [])
        if {"In": not inside, "NotIn": inside, "Exists": expression["key"] not in labels}.get(expression["operator"]):
            return False
    return True


def size(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text)).groups()
    units = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
    return int(number) * units[unit.removesuffix("B")]


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|)", str(text)).groups()
    return int(number) * {"ms": 0.001, "": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def environment(documents, container):
    """Returns a container's environment variables, as far as the manifests define them."""
    maps = {document["metadata"]["name"]: document.get("data", {}) for document in kind(documents, "ConfigMap")}
    found = {}
    for source in container.get("envFrom", []):
        found.update(maps.get(source.get("configMapRef", {}).get("name"), {}))
    found.update({variable["name"]: variable.get("value", "") for variable in container.get("env", [])})
    return found


# ---------------------------------------------------------------------------------------------------------------- policies


def privileges(name, documents, wrong):
    for document in workloads(documents):
        where, spec = f"{name}: {label(document)}", template(document)["spec"]
        pod = spec.get("securityContext", {})
        if app(document) not in ROOT:
            if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
                wrong.say("privilege", where, "runs as root, or its user is not set")
            if any("hostPath" in volume for volume in spec.get("volumes", [])):
                wrong.say("privilege", where, "mounts a hostPath")
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            wrong.say("privilege", where, "has no seccomp profile")
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            wrong.say("privilege", where, "shares a namespace with its node")
        if spec.get("automountServiceAccountToken") is not False:
            wrong.say("privilege", where, "mounts an API server token")
        for container in sum(containers(document), []):
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False:
                wrong.say("privilege", where, f"{container['name']} allows privilege escalation")
            if context.get("readOnlyRootFilesystem") is not True:
                wrong.say("privilege", where, f"{container['name']} has a writable root file system")
            if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
                wrong.say("privilege", where, f"{container['name']} keeps capabilities")
    for document in kind(documents, "Role", "ClusterRole"):
        named = {value for rule in document["rules"] for key in ("apiGroups", "resources", "verbs") for value in rule[key]}
        for much in named & {"*", "secrets", "pods/exec", "serviceaccounts/token", "escalate", "bind", "impersonate"}:
            wrong.say("privilege", f"{name}: {label(document)}", f"grants {much}")


def limits(name, documents, wrong):
    for document in workloads(documents):
        for container in sum(containers(document), []):
            resources = container.get("resources", {})
            for what in ("cpu", "memory", "ephemeral-storage"):
                for bound in ("requests", "limits"):
                    if what not in resources.get(bound, {}):
                        wrong.say("limits", f"{name}: {label(document)}", f"{container['name']}: no {bound}.{what}")


def images(name, documents, wrong):
    for document in workloads(documents):
        for container in sum(containers(document), []):
            image = container["image"]
            if not re.search(r"(@sha256:[0-9a-f]{64}|:[\w.-]*\d[\w.-]*)$", image):
                wrong.say("images", f"{name}: {label(document)}", f"{image} is not pinned")
            # .github/workflows/image.yml builds for one architecture.
            node = template(document)["spec"].get("nodeSelector", {})
            if "logweir" in image and (node.get("kubernetes.io/os"), node.get("kubernetes.io/arch")) != ("linux", "amd64"):
                wrong.say("images", f"{name}: {label(document)}", "may be scheduled to a node that its image is not for")


def probes(name, documents, wrong):
    for document in kind(documents, "Deployment", "StatefulSet", "DaemonSet"):
        for container in containers(document)[1]:
            where = f"{name}: {label(document)}: {container['name']}"
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            found = {key: container[key] for key in ("startupProbe", "readinessProbe", "livenessProbe") if key in container}
            if len(found) != 3 and not {app(document), container["name"]} & UNPROBED:
                wrong.say("probes", where, f"has only the probes {sorted(found)}")
            for key, probe in found.items():
                target = probe.get("httpGet") or probe.get("tcpSocket")
                if target and target["port"] not in ports and target["port"] not in ports.values():
                    wrong.say("probes", where, f"{key} uses port {target['port']}, expected one of {ports}")
                if probe.get("httpGet") and target["path"] not in ("/livez", "/readyz", "/startupz"):
                    wrong.say("probes", where, f"{key} uses path {target['path']}")
            path = container.get("livenessProbe", {}).get("httpGet", {}).get("path", "/livez")
            if path != "/livez":
                wrong.say("probes", where, "the liveness probe is not /livez")


def selectors(name, documents, wrong):
    pods = [(document, template(document)["metadata"]["labels"]) for document in workloads(documents)]
    for document in kind(documents, "Deployment", "StatefulSet", "DaemonSet"):
        if not selects(document["spec"]["selector"], template(document)["metadata"]["labels"]):
            wrong.say("selectors", f"{name}: {label(document)}", "does not select its own pods")
        if document["kind"] == "StatefulSet":
            services = {s["metadata"]["name"]: s for s in kind(documents, "Service")}
            service = services.get(document["spec"]["serviceName"])
            if not service or service["spec"].get("clusterIP") != "None":
                wrong.say("selectors", f"{name}: {label(document)}", "has no headless service")
    for service in kind(documents, "Service"):
        where = f"{name}: {label(service)}"
        chosen = [d for d, labels in pods if selects({"matchLabels": service["spec"]["selector"]}, labels)]
        if not chosen:
            wrong.say("selectors", where, "selects no pods")
        for document in chosen:
            ports = [port for container in containers(document)[1] for port in container.get("ports", [])]
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in [p["name"] for p in ports] + [p["containerPort"] for p in ports]:
                    wrong.say("selectors", where, f"{label(document)} has no port {port['targetPort']}")
    chosen_by = [(d, d["spec"]["selector"]) for d in kind(documents, "PodDisruptionBudget")]
    chosen_by += [(d, d["spec"]["podSelector"]) for d in kind(documents, "NetworkPolicy")]
    chosen_by += [(d, d["spec"]["selector"]) for d in kind(documents, "PodMonitor")]
    for document, selector in chosen_by:
        if selector and not any(selects(selector, labels) for _, labels in pods):
            wrong.say("selectors", f"{name}: {label(document)}", "selects no pods")
    for document in kind(documents, "PodMonitor"):
        for endpoint in document["spec"]["podMetricsEndpoints"]:
            for workload, labels in pods:
                names = [p["name"] for c in containers(workload)[1] for p in c.get("ports", [])]
                if selects(document["spec"]["selector"], labels) and endpoint["port"] not in names:
                    wrong.say("selectors", f"{name}: {label(document)}", f"{label(workload)} has no port {endpoint['port']}")
    for document in kind(documents, "HorizontalPodAutoscaler"):
        target = document["spec"]["scaleTargetRef"]
        if not any(w["kind"] == target["kind"] and w["metadata"]["name"] == target["name"] for w, _ in pods):
            wrong.say("selectors", f"{name}: {label(document)}", "has no scale target")
    names = {service["metadata"]["name"]: service for service in kind(documents, "Service")}
    for document in kind(documents, "Ingress"):
        for rule in document["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                ports = names.get(backend["name"], {"spec": {"ports": []}})["spec"]["ports"]
                if backend["port"].get("name") not in [port["name"] for port in ports]:
                    wrong.say("selectors", f"{name}: {label(document)}", f"{path['path']} has no backend port")
    for document in kind(documents, "DestinationRule", "VirtualService"):
        for host in document["spec"].get("hosts", [document["spec"].get("host")]):
            if host not in names:
                wrong.say("selectors", f"{name}: {label(document)}", f"no service {host}")


def references(name, documents, wrong):
    """Referenced ConfigMaps, Secrets, their keys, and service accounts must exist."""
    maps = {d["metadata"]["name"]: {*d.get("data", {}), *d.get("binaryData", {})} for d in kind(documents, "ConfigMap")}
    secrets = {d["metadata"]["name"]: {*d.get("data", {}), *d.get("stringData", {})} for d in kind(documents, "Secret")}
    for document in kind(documents, "ExternalSecret"):
        target = document["spec"]["target"]
        keys = target.get("template", {}).get("data") or {entry["secretKey"] for entry in document["spec"]["data"]}
        secrets[target["name"]] = set(keys)
    for document in kind(documents, "SecretProviderClass"):
        for entry in document["spec"]["secretObjects"]:
            secrets[entry["secretName"]] = {item["key"] for item in entry["data"]}
    accounts = {d["metadata"]["name"] for d in kind(documents, "ServiceAccount")}

    def need(where, what, have, wanted, keys):
        if wanted not in have:
            wrong.say("references", where, f"no {what} {wanted}")
        for key in keys:
            if wanted in have and key not in have[wanted]:
                wrong.say("references", where, f"{what} {wanted} has no key {key}")

    for document in workloads(documents):
        where, spec = f"{name}: {label(document)}", template(document)["spec"]
        if spec.get("serviceAccountName") and spec["serviceAccountName"] not in accounts:
            wrong.say("references", where, f"no service account {spec['serviceAccountName']}")
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        for container in sum(containers(document), []):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    wrong.say("references", where, f"no volume {mount['name']}")
            for source in container.get("envFrom", []):
                need(where, "ConfigMap", maps, source["configMapRef"]["name"], [])
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference and name in STACKS:
                    need(where, "Secret", secrets, reference["name"], [reference["key"]])
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                need(where, "ConfigMap", maps, volume["configMap"]["name"], [])
            parts = [volume] if "secret" in volume else volume.get("projected", {}).get("sources", [])
            for part in parts:
                secret = part.get("secret", {})
                if name in STACKS:
                    keys = [item["key"] for item in secret.get("items", [])]
                    need(where, "Secret", secrets, secret.get("secretName") or secret.get("name"), keys)
        # Files in the program's configuration must be mounted.
        for container in containers(document)[1]:
            files = set()
            for mount in container.get("volumeMounts", []):
                volume = next((v for v in spec.get("volumes", []) if v["name"] == mount["name"]), {})
                parts = [volume] if "secret" in volume else volume.get("projected", {}).get("sources", [])
                items = [item for part in parts for item in part.get("secret", {}).get("items", [])]
                files |= {f"{mount['mountPath']}/{item['path']}" for item in items}
            for key, value in environment(documents, container).items():
                if key.endswith("_FILE") and name in STACKS and value not in files:
                    wrong.say("references", where, f"{key}: {value} is not mounted")


def network(name, documents, wrong):
    policies = kind(documents, "NetworkPolicy")
    if not any(p["spec"]["podSelector"] == {} and set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"}
               and not p["spec"].get("ingress") and not p["spec"].get("egress") for p in policies):
        wrong.say("network", name, "no default-deny policy")
    pods = {}
    for document in kind(documents, "Deployment", "StatefulSet", "CronJob"):
        ports = {port["containerPort"] for container in containers(document)[1] for port in container.get("ports", [])}
        known = pods.setdefault(app(document), (template(document)["metadata"]["labels"], set()))
        known[1].update(ports)

    # Linkerd's proxies connect to each other on this port, whatever the destination port.
    meshed = {4143} if any("linkerd.io/inject" in d["metadata"].get("annotations", {}) for d in kind(documents, "Namespace")) else set()

    def allowed(labels, direction, peer):
        """Returns the ports on which `peer`, ('pod', labels) or ('namespace', name), may reach (or be reached by) pods with `labels`."""
        found = set()
        for policy in policies:
            if not selects(policy["spec"]["podSelector"], labels):
                continue
            for rule in policy["spec"].get(direction, []):
                for side in rule.get("from" if direction == "ingress" else "to", [{}]):
                    if peer[0] == "pod":
                        fits = "namespaceSelector" not in side and "ipBlock" not in side
                        fits = fits and selects(side.get("podSelector", {}), peer[1])
                    else:
                        chosen = side.get("namespaceSelector", {}).get("matchLabels", {})
                        fits = chosen.get("kubernetes.io/metadata.name") == peer[1]
                    if fits:
                        found |= {port["port"] for port in rule.get("ports", [])} or {"any"}
        return found

    for source, (source_labels, _) in pods.items():
        for target, (target_labels, ports) in pods.items():
            into = allowed(target_labels, "ingress", ("pod", source_labels))
            out = allowed(source_labels, "egress", ("pod", target_labels))
            needed = {port for a, b, port in EDGES if (a, b) == (source, target)}
            needed |= meshed if needed else set()
            for port in needed - (into & out):
                side = " and ".join(s for s, has in ((f"leave {source}", out), (f"enter {target}", into)) if port not in has)
                wrong.say("network", name, f"{source} needs {target}:{port}, but traffic may not {side}")
            for port in (into | out) - needed:
                wrong.say("network", name, f"{source} may reach {target}:{port} without need")
            for port in into - ports - meshed:
                wrong.say("network", name, f"{target} allows port {port}, where nothing listens")
    for namespace, target, port in FROM_OUTSIDE:
        if target in pods and port not in allowed(pods[target][0], "ingress", ("namespace", namespace)):
            wrong.say("network", name, f"{namespace} needs {target}:{port}")
    for source, (labels, _) in pods.items():
        if 53 not in allowed(labels, "egress", ("namespace", "kube-system")):
            wrong.say("network", name, f"{source} cannot reach DNS")


# Where pods send DNS queries: pods of kube-system, and addresses that belong to no pod (NodeLocal DNSCache, GKE's Cloud DNS).
RESOLVER_PODS = ("kube-dns", "node-local-dns")
RESOLVER_BLOCKS = {"169.254.20.10/32", "169.254.169.254/32"}


def managed(name, documents, wrong):
    """What managed clusters require: every kind of DNS can be reached, and critical pods have a quota."""
    for policy in kind(documents, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            if 53 not in [port["port"] for port in rule.get("ports", [])]:
                continue
            chosen = [side["podSelector"] for side in rule["to"] if "podSelector" in side]
            missing = [pod for pod in RESOLVER_PODS if not any(selects(selector, {"k8s-app": pod}) for selector in chosen)]
            missing += sorted(RESOLVER_BLOCKS - {side["ipBlock"]["cidr"] for side in rule["to"] if "ipBlock" in side})
            if missing:
                wrong.say("managed", f"{name}: {label(policy)}", f"has no DNS by {', '.join(missing)}")
    quotas = [entry for quota in kind(documents, "ResourceQuota") for entry in quota["spec"]["scopeSelector"]["matchExpressions"]]
    admitted = {value for entry in quotas if entry["scopeName"] == "PriorityClass" for value in entry["values"]}
    for document in workloads(documents):
        priority = template(document)["spec"].get("priorityClassName", "")
        if priority.startswith("system-") and priority not in admitted:
            wrong.say("managed", f"{name}: {label(document)}", f"GKE does not admit {priority} without a quota")


def principals(documents, target):
    """Returns the service accounts of this namespace that the mesh admits to `target`, or None without a policy."""
    found = None
    for document in kind(documents, "AuthorizationPolicy"):
        if document["apiVersion"].startswith("security.istio.io"):
            selected = document["spec"].get("selector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
            named = re.findall(r"/ns/logweir/sa/([\w-]+)", json.dumps(document["spec"].get("rules", [])))
        else:
            selected = document["spec"]["targetRef"]["name"]
            wanted = {reference["name"] for reference in document["spec"]["requiredAuthenticationRefs"]}
            lists = [d["spec"]["identityRefs"] for d in kind(documents, "MeshTLSAuthentication") if d["metadata"]["name"] in wanted]
            named = [entry["name"] for entry in sum(lists, []) if entry.get("namespace", "logweir") == "logweir"]
        if selected == target:
            found = (found or set()) | set(named)
    return found


def mesh(name, documents, wrong):
    """A mesh restricts the tiers by certificate like NetworkPolicies do by label, and its proxies outlive the drain."""
    istio = [d for d in documents if d["apiVersion"].startswith("security.istio.io")]
    linkerd = [d for d in documents if d["apiVersion"].startswith("policy.linkerd.io")]
    if not istio and not linkerd:
        return
    accounts = {app(document): template(document)["spec"].get("serviceAccountName") for document in workloads(documents)}
    for target in sorted({b for _, b, _ in EDGES} & accounts.keys()):
        needed = {accounts[a] for a, b, _ in EDGES if b == target and a in accounts}
        # Accounts of the jobs, and of producers that this overlay does not have.
        spare = {"default", "producer"}
        found = principals(documents, target)
        if found is None or needed - found or found - needed - spare:
            wrong.say("mesh", f"{name}: {target}", f"admits {sorted(found or [])}, expected {sorted(needed)}")
    namespace = kind(documents, "Namespace")[0]["metadata"]
    if linkerd:
        if namespace["annotations"].get("config.beta.linkerd.io/proxy-enable-native-sidecar") != "true":
            wrong.say("mesh", name, "its proxies end before the drain")
        if namespace["annotations"].get("config.linkerd.io/default-inbound-policy") != "deny":
            wrong.say("mesh", name, "does not deny by default")
        servers = {(d["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], d["spec"]["port"]) for d in kind(documents, "Server")}
        for document in workloads(documents):
            for port in [port["name"] for container in containers(document)[1] for port in container.get("ports", [])]:
                if (app(document), port) not in servers:
                    wrong.say("mesh", f"{name}: {label(document)}", f"no policy for port {port}")
        return
    if namespace["labels"].get("istio-injection") != "enabled":
        wrong.say("mesh", name, "has no sidecar injection")
    for document in workloads(documents):
        if template(document)["metadata"].get("annotations", {}).get("sidecar.istio.io/nativeSidecar") != "true":
            wrong.say("mesh", f"{name}: {label(document)}", "its proxy is not a native sidecar, so it ends before the drain or never")
    for document in kind(documents, "PeerAuthentication"):
        spec = document["spec"]
        if spec["mtls"]["mode"] != "STRICT" or spec.get("portLevelMtls", {}).keys() - {"9600", "9187"}:
            wrong.say("mesh", f"{name}: {label(document)}", "accepts unencrypted traffic")
    if not any(d["spec"].get("selector") is None for d in kind(documents, "PeerAuthentication")):
        wrong.say("mesh", name, "does not require mTLS by default")
    if not any(not d["spec"] for d in kind(documents, "AuthorizationPolicy")):
        wrong.say("mesh", name, "does not deny by default")
    rules = {d["spec"]["host"]: d["spec"]["trafficPolicy"] for d in kind(documents, "DestinationRule")}
    routes = {d["spec"]["hosts"][0]: d["spec"]["http"] for d in kind(documents, "VirtualService")}
    for service in kind(documents, "Service"):
        host, ports = service["metadata"]["name"], service["spec"]["ports"]
        if service["spec"].get("type") == "LoadBalancer":
            continue
        if service["spec"].get("clusterIP") == "None":
            # Clients use pod addresses, which an HTTP route does not match.
            if any(port["appProtocol"] != "tcp" for port in ports):
                wrong.say("mesh", f"{name}: {host}", "would be routed by host name")
        elif ports[0]["appProtocol"] == "http":
            rule = rules.get(host, {})
            if rule.get("loadBalancer") != {"simple": "LEAST_REQUEST"} or not {"outlierDetection", "connectionPool"} <= rule.keys():
                wrong.say("mesh", f"{name}: {host}", "no balancing by load, no outlier detection, or no connection pool")
            for route in routes.get(host, [{}]):
                retried = set(route.get("retries", {}).get("retryOn", "").split(",")) - {""}
                stream = [match["uri"] for match in route.get("match", [])] == [{"prefix": "/api/v1/tail"}]
                # A rule of Istio's CRD, which its schema does not have: a duration is at least a millisecond.
                limited = bool(seconds(route["timeout"])) if "timeout" in route else None
                if limited is not (None if stream else True) or retried - {"connect-failure", "refused-stream"}:
                    wrong.say("mesh", f"{name}: {host}", "no valid timeout, or retries of requests that may have been stored")


def operated(name, documents, wrong):
    """Settings for node drains, rollouts and volume moves."""
    budgets = [d["spec"] for d in kind(documents, "PodDisruptionBudget")]
    scaled = {d["spec"]["scaleTargetRef"]["name"]: d["spec"] for d in kind(documents, "HorizontalPodAutoscaler")}
    for document in kind(documents, "Deployment", "StatefulSet"):
        where, spec, pod = f"{name}: {label(document)}", document["spec"], template(document)
        if app(document) == "producer":
            continue
        autoscaled = scaled.get(document["metadata"]["name"])
        if autoscaled and "replicas" in spec:
            wrong.say("operated", where, "sets replicas, which the autoscaler manages")
        many = autoscaled or spec.get("replicas", 1) > 1
        chosen = [budget for budget in budgets if selects(budget["selector"], pod["metadata"]["labels"])]
        if (many or document["kind"] == "StatefulSet") and [budget.get("maxUnavailable") for budget in chosen] != [1]:
            wrong.say("operated", where, "has no disruption budget with maxUnavailable 1")
        if many and not pod["spec"].get("topologySpreadConstraints"):
            wrong.say("operated", where, "may run entirely on one node")
        if document["kind"] == "StatefulSet" and document["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] != "data":
            wrong.say("operated", where, "its volume claims must be named data-… as in operations.md")
        if app(document) in ("processor", "gateway"):
            sleep = containers(document)[1][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if sleep < 5:
                wrong.say("operated", where, "terminates before its endpoints are removed")
        if app(document) == "processor":
            rolling = spec.get("updateStrategy", {}).get("rollingUpdate", {})
            if "partition" not in rolling or spec.get("podManagementPolicy") != "Parallel" or not spec.get("minReadySeconds"):
                wrong.say("operated", where, "does not support a partial rollout")
            measured = {metric["type"] for metric in autoscaled["metrics"]} if autoscaled else set()
            if "Resource" not in measured or name != "overlays/dev" and "Pods" not in measured:
                wrong.say("operated", where, f"is scaled on {sorted(measured)}")
    if name == "overlays/dev":
        return
    adapter = next((d["data"] for d in kind(documents, "ConfigMap") if d["metadata"]["name"] == "logweir-metrics-adapter"), {})
    for document in kind(documents, "HorizontalPodAutoscaler"):
        for metric in [metric["pods"]["metric"]["name"] for metric in document["spec"]["metrics"] if metric["type"] == "Pods"]:
            if f"as: {metric} " not in "".join(adapter.values()):
                wrong.say("operated", f"{name}: {label(document)}", f"the metrics adapter does not provide {metric}")
    classes = {d["metadata"]["name"]: d for d in kind(documents, "StorageClass")}
    for document in classes.values():
        kept = (document.get("volumeBindingMode"), document.get("allowVolumeExpansion"), document.get("reclaimPolicy"))
        if kept != ("WaitForFirstConsumer", True, "Retain"):
            wrong.say("operated", f"{name}: {label(document)}", f"is {kept}")
    claims = [c for d in kind(documents, "StatefulSet") for c in d["spec"]["volumeClaimTemplates"]] + kind(documents, "PersistentVolumeClaim")
    for claim in claims:
        if claim["spec"].get("storageClassName") not in classes:
            wrong.say("operated", f"{name}: {claim['metadata']['name']}", "uses the cluster's default storage class")


def constant(path, pattern):
    """Returns the seconds of a constant in the program's source."""
    found = re.search(pattern + r": Duration = Duration::from_(secs|millis)\((\d+)\)", (REPOSITORY / path).read_text())
    return int(found[2]) / (1 if found[1] == "secs" else 1000)


def grace(name, documents, wrong):
    inside = constant("engine/src/topology.rs", "END_WAIT_MAX") + 2 * constant("actors/logweir/src/server.rs", "LAST_ANSWERS")
    seal = 10  # a slow disk
    for document in kind(documents, "StatefulSet", "DaemonSet"):
        for container in containers(document)[1]:
            if container["name"] != "logweir":
                continue
            set_to = environment(documents, container).get("LOGWEIR__SHUTDOWN__DEADLINE_MS", "25s")
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            needs = sleep + seconds(set_to) + inside + seal
            has = template(document)["spec"].get("terminationGracePeriodSeconds", 30)
            if has <= needs:
                wrong.say("grace", f"{name}: {label(document)}", f"the grace period is {has} s, but a drain takes {needs} s")


def volumes(name, documents, wrong):
    for document in kind(documents, "StatefulSet"):
        if document["spec"].get("persistentVolumeClaimRetentionPolicy") != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
            wrong.say("volumes", f"{name}: {label(document)}", "its volumes are deleted with it")
        quota = environment(documents, containers(document)[1][0]).get("LOGWEIR__JOURNAL__QUOTA_BYTES")
        if quota and re.fullmatch(r"\d+[KMGT]iB", quota):
            claim = size(document["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"])
            if claim < 1.2 * size(quota):
                wrong.say("volumes", f"{name}: {label(document)}", f"the quota {quota} does not fit into its volume")


# -------------------------------------------------------------------------------------------------------- with the program


class Program:
    """The binary's own information."""

    def __init__(self, path):
        self.path = path
        text = subprocess.run([path, "validate", "--reference"], capture_output=True, text=True, check=True).stdout
        self.keys = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.M))
        self.bounds = {}

    def memory_bytes_max(self, variables):
        """Returns the memory bound printed at startup with this configuration, without servers."""
        skipped = {"DATABASE__URL", "DATABASE__READ_URL", "CACHE__URL", "HTTP__LISTEN", "ADMIN__LISTEN", "DATA_DIR"}
        set_to = {k: v for k, v in variables.items() if k.startswith("LOGWEIR__") and not k.endswith("_FILE")}
        set_to = {k: v for k, v in set_to.items() if k.removeprefix("LOGWEIR__") not in skipped}
        for key in [key for key in set_to if config_key(key) not in self.keys]:
            del set_to[key]
        known = json.dumps(set_to, sort_keys=True)
        if known not in self.bounds:
            with tempfile.TemporaryDirectory() as folder:
                set_to.update(
                    LOGWEIR__DATABASE__URL="postgres://nobody@127.0.0.1:1/logs",
                    LOGWEIR__CACHE__URL="redis://127.0.0.1:1",
                    LOGWEIR__HTTP__LISTEN="127.0.0.1:0",
                    LOGWEIR__ADMIN__LISTEN="127.0.0.1:0",
                    LOGWEIR__DATA_DIR=folder,
                    LOGWEIR__AUTH__MODE="none",
                    PATH=os.environ["PATH"],
                )
                set_to["LOGWEIR__JOURNAL__QUOTA_BYTES"] = "1GiB"  # irrelevant for memory, and test disks are small
                process = subprocess.Popen([self.path, "run"], env=set_to, stderr=subprocess.PIPE, text=True)
                try:
                    line = ""
                    for line in process.stderr:
                        found = re.search(r"memory_bytes_max=(\d+)", line)
                        if found:
                            self.bounds[known] = int(found[1])
                            break
                    else:
                        raise RuntimeError(f"no memory bound was printed: {line}")
                finally:
                    process.send_signal(signal.SIGTERM)
                    process.stderr.read()
                    process.wait()
        return self.bounds[known]


def config_key(variable):
    """Environment variables must be configuration keys; LOGWEIR__HTTP__LISTEN_FILE is http.listen."""
    return variable.removeprefix("LOGWEIR__").removesuffix("_FILE").lower().replace("__", ".")


def keys(name, documents, program, wrong):
    for document in workloads(documents):
        for container in containers(document)[1]:
            for variable in environment(documents, container):
                key = config_key(variable)
                # A key can itself end in _file.
                if not variable.startswith("LOGWEIR__") or key in program.keys or f"{key}_file" in program.keys:
                    continue
                wrong.say("keys", f"{name}: {label(document)}", f"unknown key {key}")


def configuration(name, documents, program, wrong):
    """`logweir validate` accepts each configuration, with dummy secrets."""
    secrets = {"TOKENS_FILE": "a-token-of-some-length", "URL_FILE": "postgres://user:secret@host/logs", "CACHE__URL_FILE": "redis://host"}
    for document in workloads(documents):
        for container in containers(document)[1]:
            arguments = list(container.get("args", []))
            variables = environment(documents, container)
            if container["name"] != "logweir" or arguments[0] != "run":
                continue
            with tempfile.TemporaryDirectory() as folder:
                for key in [key for key in variables if key.endswith("_FILE")]:
                    secret = Path(folder) / key
                    secret.write_text(next(secrets[end] for end in sorted(secrets, key=len, reverse=True) if key.endswith(end)))
                    variables[key] = str(secret)
                for found in kind(documents, "ConfigMap"):
                    for file, text in found.get("data", {}).items():
                        if arguments[-1].endswith("/" + file):
                            (Path(folder) / file).write_text(text)
                            arguments[-1] = str(Path(folder) / file)
                command = [program.path, "validate", *arguments[1:]]
                done = subprocess.run(command, env={**variables, "PATH": os.environ["PATH"]}, cwd=folder, capture_output=True, text=True)
                if done.returncode != 0:
                    wrong.say("configuration", f"{name}: {label(document)}", done.stderr.strip())


def memory(name, documents, program, deploy, wrong):
    for document in kind(documents, "StatefulSet", "DaemonSet", "Job"):
        for container in containers(document)[1]:
            if container["name"] == "logweir":
                bound = program.memory_bytes_max(environment(documents, container))
                limit = size(container["resources"]["limits"]["memory"])
                if limit <= bound:
                    wrong.say("memory", f"{name}: {label(document)}", f"its memory limit {limit} is below the program's bound {bound}")
                if app(document) == "processor" and f"{bound:,}" not in (deploy / "operations.md").read_text():
                    wrong.say("memory", "operations.md", f"does not contain the memory bound {bound:,}")


# ------------------------------------------------------------------------------------------------------------------- alerts


# Labels that Prometheus adds to a series.
TARGET_LABELS = {"namespace", "pod", "job", "container", "instance"}


def alerts(documents, deploy, program, wrong):
    rule = next(d for d in documents if d["kind"] == "PrometheusRule")
    source = "".join(path.read_text() for folder in ("actors", "engine/src") for path in (REPOSITORY / folder).rglob("*.rs"))
    names = set(re.findall(r'"(logweir_[a-z_]+)"', source))
    dashboards = [p.read_text() for p in (deploy / "kubernetes/components/monitoring/dashboards").glob("*.json")]
    texts = {"alerts": json.dumps(rule), **{f"dashboard {n}": text for n, text in enumerate(dashboards)}}
    for where, text in texts.items():
        json.loads(text)
        for metric in set(re.findall(r"\blogweir_(?!read\b)[a-z_]+\b", text)):
            if metric.removesuffix("_bucket") not in names and metric != "logweir_backlog_records":
                wrong.say("metrics", where, f"unknown metric {metric}")
        # An alert on a label value that is never used never fires.
        for matchers in re.findall(r"\blogweir_[a-z_]+\{([^}]*)\}", text.replace('\\"', '"')):
            for key, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                for value in values.removesuffix(".*").split("|") if key not in TARGET_LABELS else []:
                    if not value[0].isdigit() and f'"{value}' not in source:
                        wrong.say("metrics", where, f"{key} is never {value}")
    tests = (HERE / "alerts.test.yaml").read_text()
    guide = (deploy / "operations.md").read_text() if (deploy / "operations.md").exists() else ""
    for alert in [r["alert"] for group in rule["spec"]["groups"] for r in group["rules"]]:
        for state in ("fires", "is silent"):
            if f"name: {alert} {state}\n" not in tests:
                wrong.say("alerts", alert, f"no test that the alert {state}")
        if f"\n### {alert}\n" not in guide:
            wrong.say("alerts", alert, "has no runbook in operations.md")
    for name in re.findall(r"^### (Logweir\w+)$", guide, re.M):
        if name not in [r["alert"] for group in rule["spec"]["groups"] for r in group["rules"]]:
            wrong.say("alerts", name, "has a runbook in operations.md, but no rule")
    if not shutil.which("promtool"):
        print("NOT CHECKED: alert rules; install promtool (Debian package prometheus)", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
        shutil.copy(HERE / "alerts.test.yaml", folder)
        for command in (["check", "rules", "rules.yaml"], ["test", "rules", "alerts.test.yaml"]):
            done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                wrong.say("alerts", " ".join(command), (done.stdout + done.stderr).strip()[:2000])


def delivery(deploy, node_modules, wrong):
    """Delivery: workflows, releases, Argo CD and Velero."""
    workflows = {path.name: path.read_text() for path in sorted((deploy.parent / ".github/workflows").glob("*.yml"))}
    for name, text in workflows.items():
        workflow = yaml.safe_load(text)
        if workflow.get("permissions") != {"contents": "read"}:
            wrong.say("delivery", name, "does not start with permissions contents: read only")
        for used in re.findall(r"uses: (\S+.*)", text):
            if not re.fullmatch(r"\./\S+|[\w./-]+@[0-9a-f]{40} # v[\d.]+", used):
                wrong.say("delivery", name, f"{used} is not pinned to a commit")
        for key, job in workflow["jobs"].items():
            if "uses" in job:
                continue
            runners = [job.get("runs-on")]
            if runners == ["${{ matrix.runner }}"]:
                runners = [entry["runner"] for entry in job["strategy"]["matrix"]["include"]]
            if set(runners) - {"ubuntu-24.04", "ubuntu-24.04-arm"} or "timeout-minutes" not in job:
                wrong.say("delivery", f"{name}: {key}", "has no fixed runner or no timeout")
    shipped = {"Dockerfile": (deploy / "Dockerfile").read_text(), "binaries.yml": workflows["binaries.yml"]}
    for name, text in shipped.items():
        built = re.findall(r"cargo (?:zig)?build .*", text)
        if not built or any("--profile dist" not in command or "--features" in command for command in built):
            wrong.say("delivery", name, "ships a program of another profile than dist, or with other features than the default ones")
    if node_modules:
        command = ["node", str(HERE / "workflows.mjs"), str(node_modules)]
        done = subprocess.run(command, input=json.dumps(workflows), capture_output=True, text=True, check=True)
        for found in json.loads(done.stdout):
            wrong.say("delivery", "actionlint", found)
    renewed = yaml.safe_load((deploy.parent / ".github/dependabot.yml").read_text())["updates"]
    renewed = {folder for of in renewed if of["package-ecosystem"].startswith("docker") for folder in of.get("directories", [of.get("directory")])}
    for path in deploy.rglob("*.yaml"):
        folder = f"/{path.parent.relative_to(deploy.parent)}"
        if folder not in renewed and re.search(r"^ *image: (?!logweir\b)", path.read_text(), re.M):
            wrong.say("delivery", "dependabot.yml", f"does not renew the images in {folder}")
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text(), re.M)[1]
    kubernetes = deploy / "kubernetes"
    tag = yaml.safe_load((kubernetes / "components/image/kustomization.yaml").read_text())["images"][0]["newTag"]
    application = yaml.safe_load((kubernetes / "argocd/application.yaml").read_text())["spec"]
    source = application["source"]
    if tag != version or source["targetRevision"] != f"v{version}":
        wrong.say("delivery", "version", f"the program is {version}, the image {tag}, Argo CD's revision {source['targetRevision']}")
    if not (deploy.parent / source["path"]).is_dir():
        wrong.say("delivery", "argocd", f"path {source['path']} does not exist")
    if application["syncPolicy"]["automated"]["prune"] or not application.get("ignoreDifferences"):
        wrong.say("delivery", "argocd", "prunes objects that are not in the repository, or conflicts with the autoscaler")
    schedule = yaml.safe_load((kubernetes / "velero/schedule.yaml").read_text())["spec"]["template"]
    if "logweir" not in schedule["includedNamespaces"] or not schedule["snapshotVolumes"]:
        wrong.say("delivery", "velero", "does not include the volumes")


def guide(documents, deploy, program, wrong):
    """Commands, keys and objects in operations.md must exist."""
    text = (deploy / "operations.md").read_text()
    text_of_help = subprocess.run([program.path, "--help"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^  ([a-z-]+)  ", text_of_help, re.M))
    for command in set(re.findall(r"(?<![\w./-])logweir ([a-z][a-z-]+)", "".join(re.findall(r"`[^`\n]+`|```sh.*?```", text, re.S)))):
        if command not in commands:
            wrong.say("guide", "operations.md", f"unknown command logweir {command}")
    sections = {key.split(".")[0] for key in program.keys if "." in key}
    for key in set(re.findall(r"`([a-z]+\.[a-z_]+)`", text)):
        if key.split(".")[0] in sections and key not in program.keys:
            wrong.say("guide", "operations.md", f"unknown key {key}")
    names = {(d["kind"].lower(), d["metadata"]["name"]) for d in documents}
    for what, name in set(re.findall(r"\b(statefulset|deployment|cronjob|networkpolicy)[/ ]([a-z][a-z-]*[a-z])(?= |`|\b)", text)):
        if (what, name) not in names:
            wrong.say("guide", "operations.md", f"unknown object {what}/{name}")


def beside(deploy, wrong):
    """Duplicated files must be identical, and one image has one tag."""
    tags = {}
    for path in deploy.rglob("*.yaml"):
        for image, tag in re.findall(r"^\s*image: ([\w./-]+):(\S+)", path.read_text(), re.M):
            tags.setdefault(image, {}).setdefault(tag, path.name)
    for image, found in tags.items():
        if len(found) > 1:
            wrong.say("duplicates", image, f"has different tags: {found}")
    if (deploy / "node-agent.toml").read_text() != (deploy / "kubernetes/node-agent/logweir.toml").read_text():
        wrong.say("duplicates", "node-agent.toml", "differs from kubernetes/node-agent/logweir.toml")
    own, replica = (deploy / "kubernetes" / path / "pgbouncer.ini" for path in ("base/database", "components/replica"))
    differing = [line for line in set(own.read_text().splitlines()) ^ set(replica.read_text().splitlines())]
    if any("host=" not in line and not line.startswith(";") for line in differing):
        wrong.say("duplicates", "pgbouncer.ini", f"base and replica differ in {differing}")


# ------------------------------------------------------------------------------------------------------------------ compose


def compose(deploy, program, wrong):
    folder = deploy / "compose"
    stack = yaml.safe_load((folder / "compose.yaml").read_text())
    try:
        compose_spec.PyCompose.from_json(json.dumps({key: value for key, value in stack.items() if not key.startswith("x-")}))
    except Exception as error:  # the package has no specific exception type
        wrong.say("compose", "schema", str(error))
        return
    services = stack["services"]
    networks = {name: set(service["networks"]) for name, service in services.items()}
    aliases = {alias: name for name, service in services.items() if isinstance(service["networks"], dict)
               for network in service["networks"].values() for alias in (network or {}).get("aliases", [])}
    if networks["producer"] & networks["database"]:
        wrong.say("compose", "producer", "can reach the database")
    if {name for name, network in stack["networks"].items() if not network.get("internal")} != {"frontend"}:
        wrong.say("compose", "networks", "only frontend may be external")
    for name, service in services.items():
        where = f"compose: {name}"
        published = service.get("ports", [])
        if any(not port.startswith("127.0.0.1:") for port in published) or published and name not in ("gateway", "grafana"):
            wrong.say("compose", where, f"publishes {published}")
        if not {"cpus", "memory"} <= set(service.get("deploy", {}).get("resources", {}).get("limits", {})):
            wrong.say("compose", where, "has no limits")
        if not re.search(r":[\w.-]*\d[\w.-]*$", service["image"]):
            wrong.say("compose", where, f"{service['image']} is not pinned")
        if "no-new-privileges:true" not in service.get("security_opt", []):
            wrong.say("compose", where, "may gain privileges")
        if not service["image"].startswith("logweir:") and "healthcheck" not in service:
            wrong.say("compose", where, "has no health check")
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] != "service_healthy" or needed not in services:
                wrong.say("compose", where, f"waits for {needed}, which never becomes healthy")
        variables = service.get("environment", {})
        mounted = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        files = [value for key, value in variables.items() if key.endswith("_FILE")]
        for missing in set(files) - mounted:
            wrong.say("compose", where, f"{missing} is not mounted")
        if not service["image"].startswith("logweir:"):
            continue
        # Servers must share a network with their clients.
        called = re.findall(r"http://([a-z-]+):", " ".join(service.get("command", [])))
        called += [variables["LOGWEIR__GATEWAY__PROCESSORS"].split(":")[0]] if "LOGWEIR__GATEWAY__PROCESSORS" in variables else []
        called += ["database"] if "LOGWEIR__DATABASE__URL_FILE" in variables else []
        called += ["redis"] if "LOGWEIR__CACHE__URL_FILE" in variables else []
        for host in called:
            if not networks[name] & networks.get(aliases.get(host, host), set()):
                wrong.say("compose", where, f"cannot reach {host}")
        for variable in variables:
            key = config_key(variable)
            if key not in program.keys:
                wrong.say("keys", where, f"unknown key {key}")
        if variables.get("LOGWEIR__ROLE") == "processor":
            bound = program.memory_bytes_max(variables)
            limit = size(service["deploy"]["resources"]["limits"]["memory"].replace("M", "Mi"))
            if limit <= bound:
                wrong.say("memory", where, f"its memory limit {limit} is below the program's bound {bound}")
    grafana(deploy, services["grafana"], wrong)
    made = (folder / "make-secrets").read_text()
    for secret, how in stack["secrets"].items():
        if how["file"] != f"./secrets/{secret}" or not re.search(rf"\b{secret}\b", made):
            wrong.say("compose", "secrets", f"make-secrets does not create {secret}")


def grafana(deploy, service, wrong):
    """The service provides all variables, files and directories for provisioning, and dashboards have unique ids and titles."""
    provisioned = "".join(path.read_text() for path in (deploy / "grafana/provisioning").rglob("*.yaml"))
    for variable in set(re.findall(r"\$([A-Z]\w+)", provisioned)) - set(service["environment"]):
        wrong.say("grafana", "provisioning", f"the service does not set {variable}")
    for secret in set(re.findall(r"\$__file\{/run/secrets/([\w-]+)\}", provisioned)) - set(service["secrets"]):
        wrong.say("grafana", "provisioning", f"the service does not mount {secret}")
    mounts = [volume.split(":")[:2] for volume in service["volumes"] if volume.startswith("../")]
    sources = [(deploy / "compose" / source).resolve() for source, _ in mounts]
    for source in [source for source in sources if not source.is_dir()]:
        wrong.say("grafana", "volumes", f"{source} does not exist")
    shown = [json.loads(path.read_text()) for source in sources for path in source.glob("*.json")]
    if not re.search(r"path: /var/lib/grafana/dashboards\b", provisioned) or len(shown) < 2:
        wrong.say("grafana", "volumes", "the dashboards are not mounted at the provisioned path")
    for name in ("uid", "title"):
        if len({dashboard[name] for dashboard in shown}) < len(shown):
            wrong.say("grafana", "dashboards", f"two dashboards have the same {name}")


# --------------------------------------------------------------------------------------------------------------------- all


# Checks of rendered objects, by name; those in OF_STACKS apply only to whole stacks.
OF_OBJECTS = {
    "privilege": privileges, "limits": limits, "images": images, "probes": probes, "selectors": selectors,
    "references": references, "grace": grace, "volumes": volumes, "managed": managed,
}
OF_STACKS = {"network": network, "mesh": mesh, "operated": operated}
WITH_PROGRAM = {"keys": keys, "configuration": configuration}
OF_FILES = {"compose", "grafana", "delivery", "duplicates"}


def check(deploy, program, node_modules, wanted=None):
    """Runs every check, or only those that can find `wanted`."""
    wrong, unknown = Wrong(), set()
    stacks = {} if wanted in OF_FILES else rendered(deploy, wrong)
    for name, documents in stacks.items():
        if wanted in (None, "schema"):
            unknown |= schemas(name, documents, node_modules, wrong)
        for finds, policy in {**OF_OBJECTS, **(OF_STACKS if name in STACKS else {})}.items():
            if wanted in (None, finds):
                policy(name, documents, wrong)
        for finds, policy in WITH_PROGRAM.items():
            if wanted in (None, finds):
                policy(name, documents, program, wrong)
        if wanted in (None, "memory"):
            memory(name, documents, program, deploy, wrong)
    if wanted in (None, "schema"):
        application = [yaml.safe_load((deploy / "kubernetes/argocd/application.yaml").read_text())]
        unknown |= schemas("argocd", application, node_modules, wrong)
    if wanted in (None, "alerts", "metrics") and "overlays/production" in stacks:
        alerts(stacks["overlays/production"], deploy, program, wrong)
    if wanted in (None, "guide") and "overlays/production" in stacks:
        guide(stacks["overlays/production"], deploy, program, wrong)
    if wanted in (None, "compose", "grafana", "keys", "memory"):
        compose(deploy, program, wrong)
    if wanted in (None, "delivery"):
        delivery(deploy, node_modules, wrong)
    if wanted in (None, "duplicates"):
        beside(deploy, wrong)
    if wanted is None:
        objects = sum(len(documents) for documents in stacks.values())
        print(f"{len(stacks)} renderings, {objects} objects, {len(wrong)} findings")
        if unknown:
            print(f"NOT CHECKED against a schema, since none is available: {', '.join(sorted(unknown))}", file=sys.stderr)
    return wrong


# Mutations: (check that must detect it, file under deploy/, text, replacement).
MUTATIONS = [
    ("render", "kubernetes/overlays/dev/kustomization.yaml", "../../base]", "../../bass]"),
    ("schema", "kubernetes/base/processor.yaml", "podManagementPolicy:", "podManagerPolicy:"),
    ("schema", "kubernetes/components/istio/istio.yaml", "mode: PERMISSIVE", "mode: SOMETIMES"),
    ("privilege", "kubernetes/base/gateway.yaml", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
    ("privilege", "kubernetes/base/redis.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("privilege", "kubernetes/base/database.yaml", "runAsNonRoot: true", "runAsNonRoot: false"),
    ("privilege", "kubernetes/base/access.yaml", "[pods/portforward]", "[pods/portforward, secrets]"),
    ("limits", "kubernetes/base/processor.yaml", 'limits: { cpu: "2", memory: 1280Mi', 'limits: { memory: 1280Mi'),
    ("images", "kubernetes/base/redis.yaml", "redis:8.10.2-alpine", "redis:latest"),
    ("images", "kubernetes/node-agent/node-agent.yaml", ", kubernetes.io/arch: amd64", ""),
    ("probes", "kubernetes/base/processor.yaml", "path: /readyz, port: admin", "path: /readyz, port: 9601"),
    ("probes", "kubernetes/base/gateway.yaml", "path: /livez", "path: /readyz"),
    ("selectors", "kubernetes/base/redis.yaml", "selector: { app.kubernetes.io/name: redis }", "selector: { app: redis }"),
    ("selectors", "kubernetes/base/processor.yaml", "kind: StatefulSet, name: processor }", "kind: StatefulSet, name: p }"),
    ("selectors", "kubernetes/components/ingress/ingress.yaml", "{ name: gateway, port", "{ name: dashboard, port"),
    ("references", "kubernetes/base/gateway.yaml", "{ key: read-url,", "{ key: reed-url,"),
    ("references", "kubernetes/base/config/processor.env", "secrets/cache-url", "secrets/cash-url"),
    ("references", "kubernetes/components/external-secrets/secrets.yaml", "        read-url:", "        reed-url:"),
    ("network", "kubernetes/base/network.yaml", "{ protocol: TCP, port: 6432 }", "{ protocol: TCP, port: 6433 }"),
    ("network", "kubernetes/base/network.yaml", "  name: default-deny\nspec:\n  podSelector: {}",
     "  name: default-deny\nspec:\n  podSelector: { matchLabels: { app.kubernetes.io/name: redis } }"),
    ("network", "kubernetes/components/demo/producer.yaml", 'logweir/producer: "true"', 'logweir/producer: "false"'),
    ("network", "kubernetes/components/linkerd/kustomization.yaml", "path: /spec/egress/3/ports/-", "path: /spec/egress/2/ports/-"),
    ("mesh", "kubernetes/components/istio/istio.yaml", "cluster.local/ns/logweir/sa/backup", "cluster.local/ns/logweir/sa/x"),
    ("mesh", "kubernetes/components/istio/istio.yaml", "name: default\nspec:\n  mtls: { mode: STRICT }",
     "name: default\nspec:\n  mtls: { mode: PERMISSIVE }"),
    ("mesh", "kubernetes/components/istio/istio.yaml", "name: default-deny\nspec: {}", "name: default-deny\nspec: { rules: [{}] }"),
    ("mesh", "kubernetes/components/istio/istio.yaml", 'perTryTimeout: 15s, retryOn: "connect-failure', 'perTryTimeout: 15s, retryOn: "5xx'),
    ("mesh", "kubernetes/components/istio/istio.yaml", "LEAST_REQUEST", "RANDOM"),
    ("mesh", "kubernetes/components/istio/istio.yaml", "timeout: 35s", "timeout: 0s"),
    ("mesh", "kubernetes/components/istio/kustomization.yaml", "{ kind: CronJob }", "{ kind: Job }"),
    ("mesh", "kubernetes/base/processor.yaml", "appProtocol: tcp", "appProtocol: http"),
    ("mesh", "kubernetes/components/linkerd/linkerd.yaml", "{ kind: ServiceAccount, name: backup }", "{ kind: ServiceAccount, name: x }"),
    ("mesh", "kubernetes/components/linkerd/linkerd.yaml", "  port: redis", "  port: radish"),
    ("mesh", "kubernetes/components/linkerd/kustomization.yaml", "config.beta.linkerd.io/", "config.linkerd.io/"),
    ("operated", "kubernetes/base/processor.yaml", "partition: 0 }", "maxUnavailable: 1 }"),
    ("operated", "kubernetes/base/processor.yaml", "{ sleep: { seconds: 5 } }", "{ sleep: { seconds: 1 } }"),
    ("operated", "kubernetes/base/processor.yaml", "kind: PodDisruptionBudget\nmetadata:\n  name: processor\nspec:\n  maxUnavailable: 1",
     "kind: PodDisruptionBudget\nmetadata:\n  name: processor\nspec:\n  maxUnavailable: 0"),
    ("operated", "kubernetes/base/gateway.yaml", "topologySpreadConstraints:", "x-spread:"),
    ("operated", "kubernetes/components/backlog-autoscaling/kustomization.yaml", "logweir_backlog_records", "logweir_backlog"),
    ("operated", "kubernetes/overlays/production/kustomization.yaml", "  - ../../components/backlog-autoscaling\n", ""),
    ("operated", "kubernetes/components/storage/storage.yaml", "WaitForFirstConsumer", "Immediate"),
    ("operated", "kubernetes/overlays/production/kustomization.yaml", "  - ../../components/backup\n  - ../../components/storage\n",
     "  - ../../components/storage\n  - ../../components/backup\n"),
    ("delivery", "../.github/workflows/ci.yml", "@11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2", "@v4"),
    ("delivery", "../.github/workflows/release.yml", "needs.version.outputs.version", "needs.version.outputs.revision"),
    ("delivery", "../.github/workflows/image.yml", "    timeout-minutes: 90\n", ""),
    ("delivery", "../.github/dependabot.yml", "      - /deploy/kubernetes/components/replica\n", ""),
    ("delivery", "../.github/workflows/binaries.yml", "runner: ubuntu-24.04-arm", "runner: ubuntu-latest"),
    ("delivery", "../.github/workflows/binaries.yml", "--profile dist", "--release"),
    ("delivery", "Dockerfile", "--profile dist", "--profile dist --features faults"),
    ("delivery", "kubernetes/components/image/kustomization.yaml", "newTag: 0.1.0", "newTag: 0.1.1"),
    ("delivery", "kubernetes/argocd/application.yaml", "prune: false", "prune: true"),
    ("managed", "kubernetes/base/network.yaml", "        - ipBlock: { cidr: 169.254.20.10/32 }\n", ""),
    ("managed", "kubernetes/base/network.yaml", "[kube-dns, node-local-dns]", "[kube-dns]"),
    ("managed", "kubernetes/node-agent/node-agent.yaml", "values: [system-node-critical]", "values: [system-cluster-critical]"),
    ("grace", "kubernetes/base/processor.yaml", "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 40"),
    ("grace", "kubernetes/base/config/processor.env", "DEADLINE_MS=25s", "DEADLINE_MS=55s"),
    ("volumes", "kubernetes/base/config/processor.env", "QUOTA_BYTES=8GiB", "QUOTA_BYTES=10GiB"),
    ("volumes", "kubernetes/base/database.yaml", "whenDeleted: Retain", "whenDeleted: Delete"),
    ("keys", "kubernetes/base/config/processor.env", "LOGWEIR__LOG__FORMAT", "LOGWEIR__LOG__SHAPE"),
    ("configuration", "kubernetes/base/config/processor.env", "QUOTA_BYTES=8GiB", "QUOTA_BYTES=8 apples"),
    ("configuration", "kubernetes/node-agent/logweir.toml", "stack_traces = true", "stack_traces = 7"),
    ("memory", "kubernetes/base/processor.yaml", "memory: 1280Mi", "memory: 512Mi"),
    ("memory", "operations.md", "(`memory_bytes_max=…`): 1,", "(`memory_bytes_max=…`): 2,"),
    ("guide", "operations.md", "logweir journal check", "logweir journals check"),
    ("guide", "operations.md", "`journal.quota_bytes`", "`journal.quota`"),
    ("guide", "operations.md", "deployment/wal-archiver", "deployment/archiver"),
    ("metrics", "kubernetes/components/monitoring/alerts.yaml", "logweir_journal_writable", "logweir_journal_is_writable"),
    ("metrics", "kubernetes/components/monitoring/dashboards/logweir.json", "logweir_store_rows_total", "logweir_rows_total"),
    ("metrics", "kubernetes/components/monitoring/alerts.yaml", '{outcome="rejected"}', '{outcome="denied"}'),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", " unless logweir_stage_restarts_total offset 15m", " > 99"),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", "== 2\n          for: 2m", "== 3\n          for: 2m"),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", "alert: LogweirDown", "alert: LogweirDone"),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", 'slot_name="backup"} == 0', 'slot_name="backup"} == 2'),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", "< kube_statefulset_replicas", "> kube_statefulset_replicas"),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", '{namespace="logweir",condition="true"} == 1', '{namespace="logweir"} == 2'),
    ("alerts", "kubernetes/components/monitoring/alerts.yaml", "< 5e9", "< 5e6"),
    ("alerts", "operations.md", "### LogweirDown\n", "### LogweirGone\n"),
    ("compose", "compose/compose.yaml", "condition: service_healthy", "condition: service_helthy"),
    ("compose", "compose/compose.yaml", "networks: [backend]\n    depends_on", "networks: [backend, data]\n    depends_on"),
    ("compose", "compose/compose.yaml", '"127.0.0.1:8080:8080"', '"8080:8080"'),
    ("compose", "compose/compose.yaml", "redis:8.10.2-alpine", "redis:latest"),
    ("compose", "compose/compose.yaml", "{ aliases: [processors] }", "{ aliases: [workers] }"),
    ("compose", "compose/make-secrets", "redis-password", "redis-pass"),
    ("grafana", "compose/compose.yaml", "LOGWEIR_POSTGRES_USER: ", "POSTGRES_USER: "),
    ("grafana", "compose/compose.yaml", "[grafana-password, query-token, reader-password]", "[grafana-password, query-token]"),
    ("grafana", "compose/compose.yaml", "../grafana/dashboards:", "../grafana/dashboard:"),
    ("grafana", "grafana/dashboards/logweir.json", '"uid": "logweir-records"', '"uid": "logweir-pipeline"'),
    ("duplicates", "kubernetes/node-agent/logweir.toml", "2GiB", "3GiB"),
    ("duplicates", "kubernetes/jobs/restore/job.yaml", "timescaledb:2.", "timescaledb:3."),
]


def mutations(program, node_modules, only):
    missed = 0
    for wanted, path, old, new in MUTATIONS:
        if only not in ("", wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            deploy = Path(folder) / "deploy"
            shutil.copytree(REPOSITORY / "deploy", deploy)
            shutil.copytree(REPOSITORY / ".github", deploy.parent / ".github")
            text = (deploy / path).read_text()
            if old not in text:
                print(f"NO MATCH   {wanted:11} {path}: {old!r}")
                missed += 1
                continue
            (deploy / path).write_text(text.replace(old, new))
            seen = {found for found, _, _ in check(deploy, program, node_modules, wanted)}
        missed += wanted not in seen
        was, became = ((text.splitlines() or [""])[0] for text in (old, new))
        print(f"{'detected' if wanted in seen else 'MISSED':10} {wanted:11} {path}: {was!r} -> {became!r}", flush=True)
    return missed


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--program", required=True)
    arguments.add_argument("--node-modules", type=Path)
    arguments.add_argument("--mutations", nargs="?", const="", metavar="CHECK", help="run the mutations, optionally only those of one check")
    given = arguments.parse_args()
    program = Program(Path(given.program).resolve())
    began = time.monotonic()
    if given.mutations is not None:
        failed = mutations(program, given.node_modules, given.mutations)
    else:
        wrong = check(REPOSITORY / "deploy", program, given.node_modules)
        for found in wrong:
            print("{}: {}: {}".format(*found))
        failed = len(wrong)
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
