//! The rendered StatefulSet, with the real program in its pods, through what a cluster does to pods: rollouts, scaling, kills, lost
//! nodes and pods that were given up too early. Nothing acknowledged is lost or doubled.
//!
//! `LOGWEIR_KILLS=1000` asks for more kills, `LOGWEIR_SEED=…` for the same again.

use std::path::Path;
use std::time::Duration;

use logweir_tests::accounting::Totals;
use logweir_tests::client::Load;
use logweir_tests::kubelet::manifest::Manifests;
use logweir_tests::kubelet::pod::{End, Wish, writer_of};
use logweir_tests::kubelet::{Cluster, in_cluster, kubernetes};
use logweir_tests::oracle::Violation;
use logweir_tests::proxy::Mode;
use logweir_tests::scenario::{PATIENCE, copy_volume};
use rand::Rng as _;
use serde_json::json;

/// The overlay for one node; none, loudly, where nothing renders it.
fn dev() -> Option<Manifests> {
    Manifests::render(&kubernetes().join("overlays/dev"))
}

/// That overlay in another release, with one setting changed as well, and a partition.
fn release(tag: &str, partition: u32) -> Option<Manifests> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // A kustomization names its bases by relative paths.
    let up: String = dir.path().components().skip(1).map(|_| "../").collect();
    let overlay = kubernetes().join("overlays/dev").canonicalize().expect("the overlay");
    let overlay = overlay.strip_prefix("/").expect("an absolute path").display().to_string();
    let text = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "logweir",
        "resources": [format!("{up}{overlay}")],
        "images": [{"name": "ghcr.io/logweir/logweir", "newTag": tag}],
        "configMapGenerator": [{"name": "logweir-processor", "behavior": "merge", "literals": [format!("LOGWEIR__LOG__LEVEL=info,release={tag}")]}],
        "patches": [{
            "target": {"kind": "StatefulSet", "name": "processor"},
            "patch": json!([{"op": "replace", "path": "/spec/updateStrategy/rollingUpdate/partition", "value": partition}]).to_string(),
        }],
    });
    std::fs::write(dir.path().join("kustomization.yaml"), text.to_string()).expect("a kustomization");
    Manifests::render(dir.path())
}

#[test]
fn pods_start_and_take_records() {
    let Some(objects) = dev() else { return };
    in_cluster("start", &objects, 2, |c| {
        c.settle();
        let load = c.load(Load::default());
        c.acknowledged(500);
        load.stop();
        c.conserve();
    });
}
