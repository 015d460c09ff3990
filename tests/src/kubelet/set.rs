//! The StatefulSet controller: determines which pods exist, with which revision and volume, in which order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::manifest::{Keep, Manifests, PodManagement, PodSpec, StatefulSet, UpdateStrategy};
use super::pod::{End, Plan, Pod, World};

/// A revision of the pod template, with the objects that it references.
struct Revision {
    number: u32,
    spec: Rc<PodSpec>,
    objects: Manifests,
}

/// A StatefulSet.
pub struct Set {
    name: String,
    stateful_set: StatefulSet,
    replicas: u32,
    current: Rc<Revision>,
    update: Rc<Revision>,
    pods: BTreeMap<u32, Pod>,
    claims: BTreeMap<String, PathBuf>,
    made: u32,
    dir: PathBuf,
    world: World,
    ends: Vec<End>,
}

impl Set {
    /// Creates the StatefulSet `name` of `objects` with this number of replicas, in `dir`.
    ///
    /// # Errors
    /// The manifest contains an unsupported field.
    pub fn new(name: &str, objects: &Manifests, replicas: u32, world: World, dir: &Path) -> Result<Self, String> {
        let stateful_set = objects.stateful_set(name)?;
        let spec = Rc::new(stateful_set.template.spec.clone());
        let revision = Rc::new(Revision { number: 1, spec, objects: objects.clone() });
        Ok(Self {
            name: name.to_owned(),
            replicas: stateful_set.replicas.unwrap_or(replicas),
            stateful_set,
            current: revision.clone(),
            update: revision,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            made: 0,
            dir: dir.to_owned(),
            world,
            ends: Vec::new(),
        })
    }

    /// Applies new manifests. A changed template creates a revision. The number of replicas is kept.
    ///
    /// # Errors
    /// As [`Set::new`].
    pub fn apply(&mut self, objects: &Manifests) -> Result<(), String> {
        let stateful_set = objects.stateful_set(&self.name)?;
        let spec = Rc::new(stateful_set.template.spec.clone());
        if *spec != *self.update.spec {
            let number = self.update.number + 1;
            self.update = Rc::new(Revision { number, spec, objects: objects.clone() });
        }
        self.stateful_set = stateful_set;
        Ok(())
    }

    /// Sets the number of replicas.
    pub fn scale(&mut self, replicas: u32) {
        self.replicas = replicas;
    }

    /// The pods, by ordinal.
    pub fn pods(&mut self) -> &mut BTreeMap<u32, Pod> {
        &mut self.pods
    }

    /// Terminations of the containers so far, in order.
    #[must_use]
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// Removes the pod like `kubectl delete --force --grace-period=0`: a pod of the same name can be created regardless
    /// of the old process.
    pub fn forget(&mut self, ordinal: u32) -> Option<Pod> {
        self.pods.remove(&ordinal)
    }

    /// Returns the directory of a claim's files. A claim outlives its pods.
    ///
    /// # Panics
    /// If the claim does not exist.
    #[must_use]
    pub fn claim(&self, claim: &str) -> PathBuf {
        self.claims
            .get(claim)
            .unwrap_or_else(|| panic!("unknown claim {claim}: expected one of {:?}", self.claims))
            .clone()
    }

    /// Returns the names of all claims.
    #[must_use]
    pub fn claims(&self) -> Vec<String> {
        self.claims.keys().cloned().collect()
    }

    /// Moves the claim's files to another directory.
    pub fn move_claim(&mut self, claim: &str, to: PathBuf) {
        self.claims.insert(claim.to_owned(), to);
    }

    /// Returns whether all replicas exist with the right revision and are available.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pods.len() == self.replicas as usize
            && self.pods.iter().all(|(&ordinal, pod)| {
                pod.revision == self.wanted(ordinal).number && pod.deleted_since().is_none() && self.is_available(pod)
            })
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let long_enough = Duration::from_secs(self.stateful_set.min_ready_seconds);
        pod.deleted_since().is_none() && pod.ready_since().is_some_and(|since| since.elapsed() >= long_enough)
    }

    fn partition(&self) -> u32 {
        let UpdateStrategy::RollingUpdate { rolling_update } = &self.stateful_set.update_strategy;
        rolling_update.partition
    }

    fn wanted(&self, ordinal: u32) -> &Rc<Revision> {
        if ordinal < self.partition() { &self.current } else { &self.update }
    }

    /// Advances every pod, then performs one step of the controller.
    ///
    /// # Errors
    /// A pod cannot be created.
    pub fn step(&mut self) -> Result<(), String> {
        self.ends.extend(self.pods.values_mut().filter_map(Pod::step));
        let gone: Vec<u32> = self.pods.iter().filter(|(_, pod)| pod.is_gone()).map(|(&ordinal, _)| ordinal).collect();
        for ordinal in gone {
            self.pods.remove(&ordinal);
            if ordinal >= self.replicas
                && self.stateful_set.persistent_volume_claim_retention_policy.when_scaled == Keep::Delete
            {
                self.remove_claims(ordinal)?;
            }
        }
        let complete = self.create()? && self.delete_surplus();
        if complete {
            self.update();
        }
        Ok(())
    }

    fn in_order(&self) -> bool {
        self.stateful_set.pod_management_policy == PodManagement::OrderedReady
    }

    /// Creates missing pods; returns false while one has to wait.
    fn create(&mut self) -> Result<bool, String> {
        for ordinal in 0..self.replicas {
            match self.pods.get(&ordinal) {
                None => {
                    let pod = self.make(ordinal)?;
                    self.pods.insert(ordinal, pod);
                }
                Some(pod) if self.in_order() && !self.is_available(pod) => return Ok(false),
                Some(_) => {}
            }
            if self.in_order() && !self.is_available(&self.pods[&ordinal]) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes surplus pods from the highest ordinal; returns false while one still exists.
    fn delete_surplus(&mut self) -> bool {
        let in_order = self.in_order();
        let mut none = true;
        for pod in self.pods.range_mut(self.replicas..).map(|(_, pod)| pod).rev() {
            none = false;
            pod.delete();
            if in_order {
                break;
            }
        }
        none
    }

    /// Rolls out from the highest ordinal down to the partition, one at a time, when all pods above are available.
    fn update(&mut self) {
        for ordinal in (self.partition()..self.replicas).rev() {
            let Some(pod) = self.pods.get(&ordinal) else { return };
            if pod.revision != self.update.number && pod.deleted_since().is_none() {
                self.pods.get_mut(&ordinal).expect("the pod exists").delete();
                return;
            }
            if !self.is_available(pod) {
                return;
            }
        }
        if self.pods.values().all(|pod| pod.revision == self.update.number) {
            self.current = self.update.clone();
        }
    }

    fn make(&mut self, ordinal: u32) -> Result<Pod, String> {
        let name = format!("{}-{ordinal}", self.name);
        let wrong = |error: std::io::Error| format!("{name}: {error}");
        let mut mounted = BTreeMap::new();
        for template in &self.stateful_set.volume_claim_templates {
            let volume = &template.metadata.name;
            let claim = format!("{volume}-{name}");
            let path = self.claims.entry(claim).or_insert_with_key(|claim| self.dir.join("volumes").join(claim));
            fs::create_dir_all(&*path).map_err(wrong)?;
            mounted.insert(volume.clone(), path.clone());
        }
        self.made += 1;
        let dir = self.dir.join("pods").join(format!("{name}.{}", self.made));
        fs::create_dir_all(&dir).map_err(wrong)?;
        let revision = self.wanted(ordinal).clone();
        let plan = Plan::of(&name, &revision.spec, &revision.objects, &mounted, &self.world, &dir)?;
        Ok(Pod::new(&name, revision.number, revision.spec.clone(), plan, dir))
    }

    fn remove_claims(&mut self, ordinal: u32) -> Result<(), String> {
        for template in &self.stateful_set.volume_claim_templates {
            let claim = format!("{}-{}-{ordinal}", template.metadata.name, self.name);
            if let Some(path) = self.claims.remove(&claim) {
                fs::remove_dir_all(path).map_err(|error| format!("{claim}: {error}"))?;
            }
        }
        Ok(())
    }
}
