//! The StatefulSet's controller: which pods there should be, of which revision, on which volume, in which order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::manifest::{Keep, Manifests, PodManagement, PodSpec, StatefulSet, UpdateStrategy};
use super::pod::{End, Plan, Pod, World};

/// A description that pods were, are or will be made by, with the objects that it names.
struct Revision {
    number: u32,
    spec: Rc<PodSpec>,
    objects: Manifests,
}

/// The set.
pub struct Set {
    name: String,
    asked: StatefulSet,
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
    /// The StatefulSet `name` of `objects` with so many replicas, in `dir`.
    ///
    /// # Errors
    /// The manifest says something that would not be obeyed.
    pub fn new(name: &str, objects: &Manifests, replicas: u32, world: World, dir: &Path) -> Result<Self, String> {
        let asked = objects.stateful_set(name)?;
        let spec = Rc::new(asked.template.spec.clone());
        let revision = Rc::new(Revision { number: 1, spec, objects: objects.clone() });
        Ok(Self {
            name: name.to_owned(),
            replicas: asked.replicas.unwrap_or(replicas),
            asked,
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

    /// Takes new manifests: another template is another revision. The number of replicas stays.
    ///
    /// # Errors
    /// As [`Set::new`].
    pub fn apply(&mut self, objects: &Manifests) -> Result<(), String> {
        let asked = objects.stateful_set(&self.name)?;
        let spec = Rc::new(asked.template.spec.clone());
        if *spec != *self.update.spec {
            let number = self.update.number + 1;
            self.update = Rc::new(Revision { number, spec, objects: objects.clone() });
        }
        self.asked = asked;
        Ok(())
    }

    /// How many pods there should be.
    pub fn scale(&mut self, replicas: u32) {
        self.replicas = replicas;
    }

    /// The pods, by ordinal.
    pub fn pods(&mut self) -> &mut BTreeMap<u32, Pod> {
        &mut self.pods
    }

    /// How the containers ended so far, in order.
    #[must_use]
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// Takes the pod out of the books, as `kubectl delete --force --grace-period=0` does: whatever becomes of its process,
    /// a pod of the same name may follow.
    pub fn forget(&mut self, ordinal: u32) -> Option<Pod> {
        self.pods.remove(&ordinal)
    }

    /// Where the claim's files are. A claim outlives its pods.
    ///
    /// # Panics
    /// There is no such claim.
    #[must_use]
    pub fn claim(&self, claim: &str) -> PathBuf {
        self.claims.get(claim).unwrap_or_else(|| panic!("no claim {claim} among {:?}", self.claims)).clone()
    }

    /// The names of all claims.
    #[must_use]
    pub fn claims(&self) -> Vec<String> {
        self.claims.keys().cloned().collect()
    }

    /// The claim's files are there from now on.
    pub fn move_claim(&mut self, claim: &str, to: PathBuf) {
        self.claims.insert(claim.to_owned(), to);
    }

    /// Whether so many pods as there should be are there, each of the revision that it should be of, and available.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.pods.len() == self.replicas as usize
            && self.pods.iter().all(|(&ordinal, pod)| {
                pod.revision == self.wanted(ordinal).number && pod.deleted_since().is_none() && self.is_available(pod)
            })
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let long_enough = Duration::from_secs(self.asked.min_ready_seconds);
        pod.deleted_since().is_none() && pod.ready_since().is_some_and(|since| since.elapsed() >= long_enough)
    }

    fn partition(&self) -> u32 {
        let UpdateStrategy::RollingUpdate { rolling_update } = &self.asked.update_strategy;
        rolling_update.partition
    }

    fn wanted(&self, ordinal: u32) -> &Rc<Revision> {
        if ordinal < self.partition() { &self.current } else { &self.update }
    }

    /// Lets each pod do what is due, then does one step of the controller's own.
    ///
    /// # Errors
    /// A pod cannot be made.
    pub fn step(&mut self) -> Result<(), String> {
        self.ends.extend(self.pods.values_mut().filter_map(Pod::step));
        let gone: Vec<u32> = self.pods.iter().filter(|(_, pod)| pod.is_gone()).map(|(&ordinal, _)| ordinal).collect();
        for ordinal in gone {
            self.pods.remove(&ordinal);
            if ordinal >= self.replicas
                && self.asked.persistent_volume_claim_retention_policy.when_scaled == Keep::Delete
            {
                self.remove_claims(ordinal)?;
            }
        }
        let settled = self.create()? && self.condemn();
        if settled {
            self.update();
        }
        Ok(())
    }

    fn in_order(&self) -> bool {
        self.asked.pod_management_policy == PodManagement::OrderedReady
    }

    /// Makes what is missing; false while something of it has to wait.
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

    /// Wishes away what is too much, from the highest; false while something of it is there.
    fn condemn(&mut self) -> bool {
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

    /// From the highest ordinal down to the partition, one at a time: the next one goes when all above it are available.
    fn update(&mut self) {
        for ordinal in (self.partition()..self.replicas).rev() {
            let Some(pod) = self.pods.get(&ordinal) else { return };
            if pod.revision != self.update.number && pod.deleted_since().is_none() {
                self.pods.get_mut(&ordinal).expect("it was just there").delete();
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
        for template in &self.asked.volume_claim_templates {
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
        for template in &self.asked.volume_claim_templates {
            let claim = format!("{}-{}-{ordinal}", template.metadata.name, self.name);
            if let Some(path) = self.claims.remove(&claim) {
                fs::remove_dir_all(path).map_err(|error| format!("{claim}: {error}"))?;
            }
        }
        Ok(())
    }
}
