//! A full disk, in every order of the steps of the three threads that it concerns: a caller that appends, the writer,
//! and the housekeeper. The decisions are the journal's own ([`State`]); only the threads and the disk are modeled.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::acceptance::Acceptance;
use super::frame::frame_bytes;
use super::segment::SEGMENT_HEADER_BYTES;
use super::state::tests::{segment, state};
use super::state::{Place, RunFrame, Spare, State};
use super::types::LaneTail;

/// Two frames of this payload fit into a segment.
const PAYLOAD_BYTES: usize = 600;
const SEGMENT_BYTES: u64 = 2048;
const APPENDS_MAX: u8 = 5;
const FULL_MAX: u8 = 3;

/// A frame in the queue.
#[derive(Clone, Copy, Debug)]
struct Queued {
    place: Place,
    seq: u64,
    bytes: u64,
}

/// What the writer does next.
#[derive(Clone, Debug)]
enum Writer {
    Waits,
    Writes(Vec<Queued>),
    /// The disk was full: has rejected appends, and fails what is queued, one after the other.
    Fails,
    RollsBack,
}

/// What the housekeeper does next.
#[derive(Clone, Copy, Debug)]
enum Housekeeper {
    Looks,
    /// It has seen a full disk, and made space since.
    GivesBack,
}

/// Everything that the threads share, and where each of them is.
#[derive(Clone)]
struct World {
    state: State,
    queue: VecDeque<Queued>,
    writer: Writer,
    housekeeper: Housekeeper,
    /// Where the writer's file ends, and the last frame in it.
    end: Place,
    seq: u64,
    appends: u8,
    full: u8,
    confirmed: bool,
    /// A frame was written to another place than where its caller believes it to be.
    is_wrong: bool,
}

/// A step of one thread, for the counterexample.
type Step = &'static str;

impl World {
    fn new() -> Self {
        let state = state(SEGMENT_BYTES, 100 * SEGMENT_BYTES);
        let end = Place { segment: 1, offset: state.durable.offset };
        Self {
            state,
            queue: VecDeque::new(),
            writer: Writer::Waits,
            housekeeper: Housekeeper::Looks,
            end,
            seq: 1,
            appends: 0,
            full: 0,
            confirmed: false,
            is_wrong: false,
        }
    }

    /// Identifies the world; how often the state was rolled back does not matter.
    fn key(&self) -> String {
        let Self { state, queue, writer, housekeeper, end, seq, appends, full, confirmed, is_wrong: _ } = self;
        let State { allocated, durable, acceptance, spare, confirmed_seq, .. } = state;
        format!(
            "{allocated:?}{durable:?}{acceptance:?}{spare:?}{confirmed_seq} {queue:?}{writer:?}{housekeeper:?}{end:?}{seq} \
             {appends} {full} {confirmed}"
        )
    }

    /// The worlds after one step of any thread.
    fn next(&self, gives_back: fn(&mut State)) -> Vec<(Step, Self)> {
        let mut next = Vec::new();
        let mut after = |name, step: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            step(&mut world);
            next.push((name, world));
        };
        if self.appends < APPENDS_MAX {
            after("append", &|world| world.append());
        }
        if !self.confirmed {
            after("confirm the run", &|world| {
                world.confirmed = true;
                let confirm = world.state.confirm_run();
                world.queue.extend(confirm.map(queued));
            });
        }
        match &self.writer {
            Writer::Waits if self.queue.is_empty() => {}
            Writer::Waits => {
                after("take one frame", &|world| world.take_group(1));
                after("take a group", &|world| world.take_group(usize::MAX));
            }
            Writer::Writes(group) => {
                after("write", &|world| world.write(group));
                if self.full < FULL_MAX {
                    after("the disk is full, reject", &|world| world.reject(group, false));
                    if group[0].place.segment != self.end.segment {
                        after("the disk is full behind a new segment, reject", &|world| world.reject(group, true));
                    }
                }
            }
            Writer::Fails => after("fail a frame", &|world| world.fail_one()),
            Writer::RollsBack => after("roll back", &|world| {
                world.state.roll_back();
                world.writer = Writer::Waits;
            }),
        }
        match self.housekeeper {
            Housekeeper::Looks if self.state.acceptance.reject_reason().is_some() => after("make space", &|world| {
                world.state.spare = Spare::Ready;
                world.housekeeper = Housekeeper::GivesBack;
            }),
            Housekeeper::Looks if self.state.spare == Spare::Ready && self.full < FULL_MAX => {
                after("no space for a spare", &|world| {
                    world.full += 1;
                    world.state.spare = Spare::NoSpace;
                });
            }
            Housekeeper::Looks => {}
            Housekeeper::GivesBack => after("give space back", &|world| {
                gives_back(&mut world.state);
                world.housekeeper = Housekeeper::Looks;
            }),
        }
        next
    }

    fn append(&mut self) {
        self.appends += 1;
        let Ok(placed) = self.state.place(0, 1, PAYLOAD_BYTES, 0, None) else { return };
        self.queue.extend(placed.before.map(queued));
        let (place, seq) = (placed.place, placed.appended.seq);
        self.queue.push_back(Queued { place, seq, bytes: frame_bytes(PAYLOAD_BYTES) });
    }

    fn take_group(&mut self, frames_max: usize) {
        let segment = self.queue[0].place.segment;
        let of_segment = self.queue.iter().take_while(|queued| queued.place.segment == segment).count();
        self.writer = Writer::Writes(self.queue.drain(..of_segment.min(frames_max)).collect());
    }

    fn write(&mut self, group: &[Queued]) {
        self.rotate_for(group);
        for frame in group {
            self.is_wrong |= (frame.place, frame.seq) != (self.end, self.seq + 1);
            self.end.offset += frame.bytes;
            self.seq = frame.seq;
        }
        let lanes = BTreeMap::from([(0, LaneTail { seq: self.seq, records: 0 })]);
        self.state.advance(self.seq, self.end.offset, &lanes);
        self.writer = Writer::Waits;
    }

    fn rotate_for(&mut self, group: &[Queued]) {
        let number = group[0].place.segment;
        if number != self.end.segment {
            self.end = Place { segment: number, offset: SEGMENT_HEADER_BYTES as u64 };
            self.state.spare = Spare::Missing;
            self.state.add_segment(number, segment(SEGMENT_BYTES));
        }
    }

    /// The disk is full for the group, with `rotated` only after its segment has been created.
    fn reject(&mut self, group: &[Queued], rotated: bool) {
        if rotated {
            self.rotate_for(group);
        }
        self.full += 1;
        self.state.acceptance.write_failed();
        self.writer = Writer::Fails;
    }

    fn fail_one(&mut self) {
        if self.queue.pop_front().is_none() {
            self.writer = Writer::RollsBack;
        }
    }

    /// Whether appends are accepted once the writer and the housekeeper have done what they can.
    fn settles(mut self) -> bool {
        for _ in 0..100 {
            self.full = FULL_MAX;
            self.appends = APPENDS_MAX;
            self.confirmed = true;
            let Some((_, next)) = self.next(give_back).into_iter().next() else { break };
            self = next;
        }
        self.state.acceptance == Acceptance::Open
    }
}

fn queued(RunFrame { place, seq, payload, .. }: RunFrame) -> Queued {
    Queued { place, seq, bytes: frame_bytes(payload.len()) }
}

/// What the housekeeper does.
fn give_back(state: &mut State) {
    state.acceptance.space_made();
}

/// Visits every world, nearest first. Returns how many there are, or the shortest way to a frame in a wrong place.
fn explore(gives_back: fn(&mut State), visit: &dyn Fn(&World)) -> Result<usize, Vec<Step>> {
    let mut known = HashSet::from([World::new().key()]);
    let mut open = VecDeque::from([(World::new(), Vec::new())]);
    while let Some((world, steps)) = open.pop_front() {
        visit(&world);
        for (step, next) in world.next(gives_back) {
            let mut steps = steps.clone();
            steps.push(step);
            if next.is_wrong {
                return Err(steps);
            }
            if known.insert(next.key()) {
                open.push_back((next, steps));
            }
        }
    }
    Ok(known.len())
}

#[test]
fn no_order_of_the_threads_steps_puts_a_frame_in_a_wrong_place() {
    let worlds = explore(give_back, &|_| {}).expect("no frame is in a wrong place");
    assert!(worlds > 1000, "{worlds} worlds: the model tries too little");
}

#[test]
fn whatever_has_happened_appends_are_accepted_again_once_there_is_space() {
    explore(give_back, &|world| assert!(world.clone().settles(), "{}", world.key())).unwrap();
}

#[test]
fn the_model_finds_that_space_must_not_be_given_back_before_the_roll_back() {
    let gives_back_at_once: fn(&mut State) = |state| {
        if state.acceptance.reject_reason().is_some() {
            state.acceptance = Acceptance::Open;
        }
    };
    let steps = explore(gives_back_at_once, &|_| {}).expect_err("an append between the rejection and the roll-back");
    let at = |name: Step| steps.iter().position(|step| *step == name);
    assert!(at("give space back") < at("roll back"), "{steps:?}");
}
