//! The rendered StatefulSet with the real program in its pods: rollouts, scaling, kills, lost nodes, and pods that are
//! deleted by force too early. Nothing acknowledged is lost or duplicated.
//!
//! `LOGWEIR_KILLS=1000` sets the number of kills, `LOGWEIR_SEED=…` repeats a run.

use std::time::Duration;

use logweir_tests::accounting::Totals;
use logweir_tests::client::Load;
use logweir_tests::kubelet::manifest::Manifests;
use logweir_tests::kubelet::pod::{End, EndReason};
use logweir_tests::kubelet::{Cluster, in_cluster, kubernetes};
use logweir_tests::ledger::Outcome;
use logweir_tests::oracle::Violation;
use logweir_tests::proxy::Mode;
use logweir_tests::scenario::copy_volume;
use rand::Rng as _;
use serde_json::json;

/// Renders the single-node overlay; `None` (with a message) without a renderer.
fn dev() -> Option<Manifests> {
    Manifests::render(&kubernetes().join("overlays/dev"))
}

/// Renders that overlay with another release, one changed setting and a partition.
fn release(tag: &str, partition: u32) -> Option<Manifests> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // A kustomization references its bases by relative paths.
    let up: String = dir.path().components().skip(1).map(|_| "../").collect();
    let overlay = kubernetes().join("overlays/dev").canonicalize().expect("the overlay");
    let overlay = overlay.strip_prefix("/").expect("an absolute path").display().to_string();
    let text = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "logweir",
        "resources": [format!("{up}{overlay}")],
        "images": [{"name": "ghcr.io/logweir/logweir", "newTag": tag}],
        "configMapGenerator": [{"name": "logweir-processor", "behavior": "merge", "literals": ["LOGWEIR__HTTP__WORKERS=1"]}],
        "patches": [{
            "target": {"kind": "StatefulSet", "name": "processor"},
            "patch": json!([{"op": "replace", "path": "/spec/updateStrategy/rollingUpdate/partition", "value": partition}]).to_string(),
        }],
    });
    std::fs::write(dir.path().join("kustomization.yaml"), text.to_string()).expect("a kustomization");
    Manifests::render(dir.path())
}

fn kills(by_default: u32) -> u32 {
    std::env::var("LOGWEIR_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(by_default)
}

fn jobs() -> Option<Manifests> {
    Manifests::render(&kubernetes().join("jobs/drain-journal"))
}

/// Renders the drain Job, which uses the stack's Secret.
fn drain_job(stack: &Manifests, claim: &str) -> Option<Manifests> {
    let mut job = jobs()?;
    let secret = stack.named("Secret", "logweir-database").expect("a Secret");
    job.add_secret("logweir-database", &stack.secret(secret).expect("text"));
    job.patch("Job", "drain-journal", "/spec/template/spec/volumes/0/persistentVolumeClaim/claimName", json!(claim));
    Some(job)
}

/// Asserts that a container exited on its own within its grace period, with consistent totals in its final line.
fn ended_cleanly(end: &End) -> Totals {
    assert_eq!(
        (end.reason, end.exit.code()),
        (EndReason::Deleted, Some(0)),
        "{}: {:?}: {}",
        end.pod,
        end.exit,
        end.log
    );
    let totals = Totals::at_the_end_of(&end.log).unwrap_or_else(|| panic!("no final line in {}", end.log));
    assert!(totals.add_up(), "{}: {totals:?}", end.pod);
    totals
}

fn revisions(c: &mut Cluster) -> Vec<u32> {
    c.set.pods().values().map(|pod| pod.revision).collect()
}

#[test]
fn a_rolling_update_stops_at_its_partition_and_loses_nothing() {
    let (Some(first), Some(canary), Some(all)) = (dev(), release("0.1.1", 2), release("0.1.1", 0)) else { return };
    in_cluster("rolling update", &first, 3, |c| {
        c.ready(3);
        let load = c.load(Load::default());
        c.acknowledged(300);
        c.connected();
        c.watch();
        c.set.apply(&canary).expect("the manifests are supported");
        c.until_available();
        assert_eq!(revisions(c), [1, 1, 2], "only ordinals at or above the partition are updated");
        assert_eq!(c.max_unavailable(), 1, "one at a time");
        // A deleted pod below the partition is recreated with its old revision.
        c.force_delete(0);
        c.ready(3);
        assert_eq!(revisions(c), [1, 1, 2]);
        c.connected();
        c.watch();
        c.set.apply(&all).expect("the manifests are supported");
        c.until_available();
        assert_eq!(revisions(c), [2, 2, 2]);
        assert_eq!(c.max_unavailable(), 1, "one at a time");
        load.stop();
        let order: Vec<&str> = c.set.ends().iter().map(|end| end.pod.as_str()).collect();
        assert_eq!(order, ["processor-2", "processor-1", "processor-0"]);
        for end in c.set.ends() {
            assert_eq!(ended_cleanly(end).backlog, 0, "the database is up: {}", end.log);
        }
        c.assert_contract();
    });
}

#[test]
fn a_scale_down_without_a_database_leaves_volumes_that_a_job_drains() {
    let Some(objects) = dev() else { return };
    let claims = ["data-processor-1", "data-processor-2"];
    let [Some(first), Some(second)] = claims.map(|claim| drain_job(&objects, claim)) else { return };
    in_cluster("scaling", &objects, 1, |c| {
        c.ready(1);
        let early = c.load(Load { clients: 1, ..Load::default() });
        c.acknowledged(100);
        c.set.scale(3);
        c.ready(3);
        // Existing connections stay with their pod, so use new ones.
        let load = c.load(Load { clients: 6, ..Load::default() });
        c.acknowledged(500);
        c.proxy.set(Mode::Refuse);
        c.proxy.cut();
        c.acknowledged(1000);
        let writer = c.writer(1, claims[0]);
        c.set.scale(1);
        c.until("two pods are deleted", |c| c.set.pods().len() == 1);
        let left: u64 = c.set.ends().iter().map(|end| ended_cleanly(end).backlog).sum();
        assert!(left > 0, "without the database, records must remain in the volumes");
        assert_eq!(c.set.claims().len(), 3, "claims are kept");
        c.proxy.set(Mode::Pass);
        for (claim, job) in claims.into_iter().zip([&first, &second]) {
            let output = c.run_job(job, "drain-journal", claim);
            let output_text =
                String::from_utf8_lossy(&output.stderr).into_owned() + &*String::from_utf8_lossy(&output.stdout);
            assert!(output_text.contains("left_in_journal=0"), "{output_text}");
        }
        // The next scale-up to that ordinal reuses the volume.
        c.set.scale(2);
        c.ready(2);
        assert_eq!(c.writer(1, claims[0]), writer, "identity follows the volume");
        c.acknowledged(200);
        load.stop();
        early.stop();
        c.assert_contract();
    });
}

#[test]
fn random_kills_of_pods_and_processes_lose_and_duplicate_nothing() {
    let Some(objects) = dev() else { return };
    // The oracle keeps a scenario's records in memory.
    let kills = kills(100);
    for done in (0..kills).step_by(250) {
        in_cluster("random kills", &objects, 3, |c| kill_at_random(c, (kills - done).min(250)));
    }
}

fn kill_at_random(c: &mut Cluster, kills: u32) {
    c.ready(3);
    let load = c.load(Load::default());
    c.acknowledged(200);
    for kill in 0..kills {
        // Kills between which nothing arrives test nothing.
        if kill % 10 == 9 {
            c.acknowledged(200);
        }
        let ordinal = c.random.random_range(0..3);
        let waits = c.pod(ordinal).server().is_none();
        match c.random.random_range(0..10) {
            // Out of memory: restarted in place, immediately the first time, then with backoff.
            0..2 if !waits => c.pod(ordinal).kill_process(),
            // An eviction, which a kill can interrupt.
            2 => c.pod(ordinal).delete(),
            _ => c.force_delete(ordinal),
        }
        let moment = Duration::from_millis(c.random.random_range(0..800));
        c.go_on_for(moment);
    }
    c.ready(3);
    c.acknowledged(100);
    load.stop();
    let acknowledged = c.ledger.records(Outcome::Acknowledged);
    eprintln!("{kills} kills, {acknowledged} records acknowledged");
    c.assert_contract();
}

#[test]
fn a_node_is_lost_and_its_volumes_move_to_another_one() {
    let Some(objects) = dev() else { return };
    in_cluster("node loss", &objects, 3, |c| {
        c.ready(3);
        let load = c.load(Load::default());
        for round in 0..5 {
            c.acknowledged(500);
            for ordinal in 0..3 {
                c.pod(ordinal).kill_process();
            }
            for ordinal in 0..3 {
                c.force_delete(ordinal);
            }
            for claim in c.set.claims() {
                let (from, to) = (c.set.claim(&claim), c.dir.join(format!("node-{round}-{claim}")));
                copy_volume(&from, &to);
                std::fs::remove_dir_all(from).expect("the node's directory can be deleted");
                c.set.move_claim(&claim, to);
            }
            c.ready(3);
        }
        c.acknowledged(300);
        load.stop();
        c.assert_contract();
    });
}

#[test]
fn a_force_deleted_pod_keeps_its_volume_until_it_exits() {
    let Some(objects) = dev() else { return };
    in_cluster("stuck on a shared volume", &objects, 2, |c| {
        c.ready(2);
        let load = c.load(Load::default());
        c.acknowledged(300);
        c.lose_contact(1);
        c.lost().freeze();
        // The journal's lock blocks the successor, which reports it and exits, repeatedly.
        c.until("the successor has tried", |c| !c.set.ends().is_empty());
        let end = &c.set.ends()[0];
        assert_eq!((end.exit.code(), end.reason), (Some(69), EndReason::Exited), "{}", end.log);
        assert!(end.log.contains("in use by another process"), "{}", end.log);
        c.lost().signal(libc::SIGCONT);
        c.acknowledged(300);
        assert!(c.lost_ends().is_empty(), "the old process still owns the volume");
        c.end_lost();
        c.ready(2);
        load.stop();
        c.assert_contract();
    });
}

#[test]
fn a_force_deleted_pod_that_was_overtaken_is_fenced() {
    let Some(objects) = dev() else { return };
    let Some(mut adopt) = drain_job(&objects, "overtaken") else { return };
    adopt.patch("Job", "drain-journal", "/spec/template/spec/containers/0/args/-", json!("--adopt"));
    in_cluster("stuck elsewhere", &objects, 2, |c| {
        c.ready(2);
        let load = c.load(Load::default());
        c.acknowledged(300);
        c.lose_contact(1);
        c.lost().freeze();
        // Its volume, in its current state, is attached to another node.
        let (old, new) = (c.set.claim("data-processor-1"), c.dir.join("elsewhere"));
        copy_volume(&old, &new);
        c.set.move_claim("data-processor-1", new);
        c.set.move_claim("overtaken", old);
        c.ready(2);
        c.acknowledged(300);
        c.lost().signal(libc::SIGCONT);
        // Its own, unreachable kubelet restarts it: it must not reacquire the lease.
        c.until("it has been fenced twice", |c| c.lost_ends().len() == 2);
        for end in c.lost_ends() {
            assert_eq!(end.exit.code(), Some(75), "{}", end.log);
        }
        c.end_lost();
        c.acknowledged(300);
        load.stop();
        // What it accepted after it resumed is only on its own volume.
        c.run_job(&adopt, "drain-journal", "overtaken");
        c.assert_contract();
    });
}

/// Liveness probes exist for a hung program; this uses shorter limits than the manifest.
#[test]
fn a_pod_that_hangs_is_killed_and_restarted() {
    let Some(mut objects) = dev() else { return };
    let template = "/spec/template/spec";
    for (place, value) in [
        ("/terminationGracePeriodSeconds", 2),
        ("/containers/0/lifecycle/preStop/sleep/seconds", 1),
        ("/containers/0/livenessProbe/periodSeconds", 1),
        ("/containers/0/livenessProbe/failureThreshold", 5),
    ] {
        objects.patch("StatefulSet", "processor", &format!("{template}{place}"), json!(value));
    }
    in_cluster("hanging", &objects, 1, |c| {
        c.ready(1);
        let load = c.load(Load::default());
        c.acknowledged(300);
        c.pod(0).server().expect("the pod is running").freeze();
        let before = c.set.ends().len();
        c.until("it is killed", |c| c.set.ends().len() > before);
        let end = &c.set.ends()[before];
        assert_eq!((end.reason, end.exit.killed()), (EndReason::Unhealthy, true), "{}", end.log);
        c.ready(1);
        c.acknowledged(300);
        load.stop();
        c.assert_contract();
    });
}

/// With OrderedReady, pods are started in order and stopped in reverse order.
#[test]
fn ordered_pods_start_and_stop_in_order() {
    let Some(mut objects) = dev() else { return };
    objects.patch("StatefulSet", "processor", "/spec/podManagementPolicy", json!("OrderedReady"));
    objects.patch("StatefulSet", "processor", "/spec/minReadySeconds", json!(0));
    in_cluster("in order", &objects, 2, |c| {
        c.until("the second pod is created", |c| c.set.pods().len() == 2);
        assert!(c.pod(0).ready_since().is_some(), "the first pod is not ready");
        c.ready(2);
        c.connected();
        c.set.scale(0);
        c.until("one pod is deleted", |c| c.set.pods().len() == 1);
        assert_eq!(c.set.ends().len(), 1);
        assert_eq!(c.set.ends()[0].pod, "processor-1");
    });
}

/// The scenarios can fail: if a volume is deleted with its pod, acknowledged records are missing.
#[test]
fn a_journal_in_an_empty_dir_is_detected() {
    let Some(mut objects) = dev() else { return };
    objects.patch("StatefulSet", "processor", "/spec/volumeClaimTemplates", json!([]));
    let volume = json!({"name": "data", "emptyDir": {}});
    objects.patch("StatefulSet", "processor", "/spec/template/spec/volumes/-", volume);
    in_cluster("a volume that is deleted", &objects, 1, |c| {
        c.ready(1);
        c.proxy.set(Mode::Refuse);
        c.proxy.cut();
        let load = c.load(Load::default());
        c.acknowledged(300);
        load.stop();
        c.force_delete(0);
        c.proxy.set(Mode::Pass);
        let findings = c.findings();
        assert!(matches!(&findings[..], [Violation::Lost(lost)] if lost.len() >= 300), "{findings:?}");
    });
}

/// The scenarios can fail: a scale-down that deletes the claims loses their records.
#[test]
fn claims_that_are_deleted_with_their_pods_are_detected() {
    let Some(mut objects) = dev() else { return };
    let retention = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    objects.patch("StatefulSet", "processor", "/spec/persistentVolumeClaimRetentionPolicy", retention);
    in_cluster("claims that are deleted", &objects, 2, |c| {
        c.ready(2);
        c.proxy.set(Mode::Refuse);
        c.proxy.cut();
        let load = c.load(Load::default());
        c.acknowledged(300);
        load.stop();
        c.set.scale(1);
        c.until("one pod is deleted", |c| c.set.pods().len() == 1);
        c.proxy.set(Mode::Pass);
        assert!(matches!(&c.findings()[..], [Violation::Lost(_)]));
    });
}

/// The production overlay is supported too; its secrets are created by another operator.
#[test]
fn the_production_overlay_runs() {
    let (Some(dev), Some(mut objects)) = (dev(), Manifests::render(&kubernetes().join("overlays/production"))) else {
        return;
    };
    for name in ["logweir-tokens", "logweir-database", "logweir-cache"] {
        objects.add_secret(name, &dev.secret(dev.named("Secret", name).expect("a Secret")).expect("text"));
    }
    in_cluster("production", &objects, 2, |c| {
        c.ready(2);
        let load = c.load(Load::default());
        c.acknowledged(300);
        load.stop();
        c.assert_contract();
        c.set.scale(0);
        c.until("all pods are deleted", |c| c.set.pods().is_empty());
        c.set.ends().iter().for_each(|end| assert_eq!(ended_cleanly(end).backlog, 0));
    });
}
