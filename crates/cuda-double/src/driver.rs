//! The driver's state, and how queued work gets done.
//!
//! Nobody works in the background: whoever waits does work, any stream's whose turn may have come, until what it waits
//! for is done. Calls that do not wait do some by chance. A kernel runs without the lock, so that threads of the program
//! run kernels side by side.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};
use std::time::Instant;

use crate::card::Settings;
use crate::codes::{Code, Result};
use crate::images::{Image, Loaded};
use crate::memory::{Memory, State};
use crate::random::Random;
use crate::simt::Kernel;
use crate::work::{Action, Capture, Exec, Graph, Handle, Node, Queue, Source, Task, Work};

/// `CU_STREAM_LEGACY` (0 means it too) and `CU_STREAM_PER_THREAD`.
pub const LEGACY: Handle = 1;
pub const PER_THREAD: Handle = 2;

pub struct Context {
    pub device: usize,
    /// What every call in it gives, once a fault was found.
    pub lost: Option<Code>,
    /// Streams that are nobody's object: the legacy one, and one a thread.
    legacy: Handle,
    threads: HashMap<ThreadId, Handle>,
}

pub struct Stream {
    pub context: Handle,
    /// Whether the legacy stream and it wait for each other.
    blocking: bool,
    destroyed: bool,
    pub capture: Option<Handle>,
    /// Its newest task, done or not.
    last: u64,
    queue: Queue,
}

/// Where an event was recorded last.
#[derive(Clone, Copy)]
pub enum Recorded {
    Never,
    Task(u64),
    /// In a capture, behind these nodes.
    Captured(Handle),
}

pub struct Event {
    pub context: Handle,
    pub times: bool,
    pub recorded: Recorded,
    /// When its turn came.
    pub at: Option<Instant>,
}

pub struct Module {
    pub context: Handle,
    pub loaded: Loaded,
}

pub struct Function {
    pub module: Handle,
    pub kernel: Kernel,
    /// Dynamic shared memory that a launch may ask for.
    pub shared: u32,
}

pub struct World {
    pub settings: Settings,
    pub images: Vec<Image>,
    pub initialised: bool,
    /// How often each device's primary context was retained, and the context.
    pub primary: Vec<(u32, Handle)>,
    pub contexts: HashMap<Handle, Context>,
    pub streams: BTreeMap<Handle, Stream>,
    pub events: HashMap<Handle, Event>,
    pub modules: HashMap<Handle, Module>,
    pub functions: HashMap<Handle, Function>,
    pub captures: BTreeMap<Handle, Capture>,
    pub graphs: HashMap<Handle, Graph>,
    pub execs: HashMap<Handle, Exec>,
    pub memory: Memory,
    /// What was found, in words.
    pub reports: Vec<String>,
    /// Pieces of memory that contexts took with them.
    pub leaked: usize,
    pub calls: HashMap<String, u64>,
    unfinished: HashSet<u64>,
    tasks: u64,
    handles: u64,
    random: Random,
    /// Of ten calls that do not wait, how many do some work.
    eager: usize,
}

pub struct Driver {
    world: Mutex<World>,
    /// Something was done.
    done: Condvar,
}

pub type Guard<'a> = MutexGuard<'a, World>;

impl Driver {
    pub fn new(settings: Settings, images: Vec<Image>) -> Driver {
        // Seeds differ in how late work runs, too; the first is as late as can be.
        let eager = [0, 1, 4][(settings.seed % 3) as usize];
        let world = World {
            images,
            initialised: false,
            primary: vec![(0, 0); settings.devices],
            memory: Memory::new(settings.devices),
            random: Random::new(settings.seed),
            eager,
            settings,
            contexts: HashMap::new(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            captures: BTreeMap::new(),
            graphs: HashMap::new(),
            execs: HashMap::new(),
            reports: Vec::new(),
            leaked: 0,
            calls: HashMap::new(),
            unfinished: HashSet::new(),
            tasks: 0,
            handles: 0,
        };
        Driver {
            world: Mutex::new(world),
            done: Condvar::new(),
        }
    }

    pub fn lock(&self) -> Guard<'_> {
        self.world.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Some work by chance, as a card does whatever the host is about.
    pub fn idle<'a>(&'a self, mut world: Guard<'a>) -> Guard<'a> {
        if world.random.below(10) < world.eager {
            for _ in 0..1 + world.random.below(4) {
                match world.pick() {
                    Some(stream) => world = self.step(world, stream),
                    None => break,
                }
            }
        }
        world
    }

    /// Works until it is so.
    pub fn until<'a>(&'a self, mut world: Guard<'a>, so: impl Fn(&World) -> bool) -> Guard<'a> {
        while !so(&world) {
            if let Some(stream) = world.pick() {
                world = self.step(world, stream);
            } else if world.streams.values().any(|s| s.queue.running) {
                world = self.done.wait(world).unwrap_or_else(|poisoned| poisoned.into_inner());
            } else {
                world.report("streams wait for each other for ever".into());
                let all: Vec<Handle> = world.contexts.keys().copied().collect();
                all.into_iter()
                    .for_each(|context| world.lose(context, Code::LAUNCH_TIMEOUT));
            }
        }
        world
    }

    /// One piece of this stream's first task.
    fn step<'a>(&'a self, mut world: Guard<'a>, stream: Handle) -> Guard<'a> {
        let Some((context, action, node)) = world.next_action(stream) else {
            return world;
        };
        let state = &world.contexts[&context];
        let outcome = match action {
            _ if state.lost.is_some() => Ok(()),
            Action::Launch(launch) => {
                let memory = world.memory.spans(state.device);
                let random = world.random.bits();
                world.queue(stream).running = true;
                drop(world);
                let outcome = launch.run(&memory, random);
                world = self.lock();
                world.queue(stream).running = false;
                outcome
            }
            action => world.perform(&action).map_err(|what| (Code::ILLEGAL_ADDRESS, what)),
        };
        if let Err((code, what)) = outcome {
            world.report(what);
            world.lose(context, code);
        }
        world.finish(stream, node);
        self.done.notify_all();
        world
    }
}

impl World {
    pub fn handle(&mut self) -> Handle {
        self.handles += 1;
        // No address of anything, and a multiple of 16 as addresses are.
        0x7d0b_0000_0000 + self.handles * 16
    }

    pub fn report(&mut self, what: String) {
        eprintln!("cuda double (seed {}): {what}", self.settings.seed);
        self.reports.push(what);
    }

    pub fn lose(&mut self, context: Handle, code: Code) {
        if let Some(context) = self.contexts.get_mut(&context) {
            context.lost.get_or_insert(code);
        }
    }

    fn queue(&mut self, stream: Handle) -> &mut Queue {
        &mut self.streams.get_mut(&stream).expect("streams with work are kept").queue
    }

    /// A stream whose first task may go on.
    fn pick(&mut self) -> Option<Handle> {
        let ready = |stream: &Stream| {
            let first = stream.queue.tasks.front().filter(|_| !stream.queue.running);
            first.is_some_and(|task| task.waits.iter().all(|other| !self.unfinished.contains(other)))
        };
        let ready: Vec<Handle> = self
            .streams
            .iter()
            .filter(|(_, s)| ready(s))
            .map(|(&handle, _)| handle)
            .collect();
        (!ready.is_empty()).then(|| ready[self.random.below(ready.len())])
    }

    /// What the first task does next: its context, an action, and the node's place in the list of those left.
    fn next_action(&mut self, stream: Handle) -> Option<(Handle, Action, Option<usize>)> {
        let task = self.streams.get(&stream)?.queue.tasks.front()?;
        let context = task.context;
        match &task.work {
            Work::One(action) => Some((context, action.clone(), None)),
            Work::Graph { left, .. } if left.is_empty() => Some((context, Action::Join, None)),
            Work::Graph { nodes, left } => {
                let ready: Vec<usize> = (0..left.len())
                    .filter(|&i| nodes[left[i]].after.iter().all(|before| !left.contains(before)))
                    .collect();
                let i = ready[self.random.below(ready.len())];
                Some((context, nodes[left[i]].action.clone(), Some(i)))
            }
        }
    }

    fn finish(&mut self, stream: Handle, node: Option<usize>) {
        let queue = self.queue(stream);
        let Some(task) = queue.tasks.front_mut() else {
            return;
        };
        if let (Work::Graph { left, .. }, Some(i)) = (&mut task.work, node) {
            left.swap_remove(i);
            if !left.is_empty() {
                return;
            }
        }
        let number = task.number;
        queue.tasks.pop_front();
        self.unfinished.remove(&number);
        let stream_of = &self.streams[&stream];
        if stream_of.destroyed && stream_of.queue.tasks.is_empty() {
            self.streams.remove(&stream);
        }
    }

    /// What a copy engine or the memory pool does.
    fn perform(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Join | Action::Launch(_) => {}
            Action::CopyIn { to, from, bytes } => {
                self.memory.touch(*to, *bytes)?;
                let from = match from {
                    Source::Staged(staged) => staged.as_ptr(),
                    Source::Host(at) => *at as *const u8,
                };
                // SAFETY: the target is live memory of the double's; the source was copied, or is the host memory that
                // the caller of the copy keeps until it is done.
                unsafe { std::ptr::copy(from, *to as *mut u8, *bytes as usize) };
            }
            Action::CopyOut { to, from, bytes } => {
                self.memory.touch(*from, *bytes)?;
                // SAFETY: as above, the other way round.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes as usize) };
            }
            Action::Copy { to, from, bytes } => {
                self.memory.touch(*from, *bytes)?;
                self.memory.touch(*to, *bytes)?;
                // SAFETY: both ranges are live memory of the double's.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes as usize) };
            }
            Action::Set { to, value, bytes } => {
                self.memory.touch(*to, *bytes)?;
                // SAFETY: the range is live memory of the double's.
                unsafe { std::ptr::write_bytes(*to as *mut u8, *value, *bytes as usize) };
            }
            Action::Allocate(address) => {
                if let Some(piece) = self.memory.piece(*address) {
                    piece.state = State::Live;
                }
            }
            Action::Free(address) => match self.memory.piece(*address) {
                // A graph's memory comes again with its next launch.
                Some(piece) if piece.graph.is_some() => piece.state = State::Coming,
                _ => {
                    let hurt = self.memory.release(*address);
                    if let Some(what) = hurt.map_err(|_| format!("{address:#x} was freed twice"))? {
                        return Err(what);
                    }
                }
            },
            Action::Record(event) => {
                if let Some(event) = self.events.get_mut(event) {
                    event.at = Some(Instant::now());
                }
            }
        }
        Ok(())
    }

    pub fn is_done(&self, task: u64) -> bool {
        !self.unfinished.contains(&task)
    }

    /// The last tasks of everything in this context.
    pub fn all_done(&self, context: Handle) -> bool {
        let own = |s: &&Stream| s.context == context;
        self.streams.values().filter(own).all(|s| s.queue.tasks.is_empty())
    }

    pub fn is_drained(&self, stream: Handle) -> bool {
        self.streams.get(&stream).is_none_or(|s| s.queue.tasks.is_empty())
    }

    /// Whether a task under way reads or writes a part of this host memory.
    pub fn in_flight(&self, address: u64, bytes: u64) -> bool {
        let tasks = self.streams.values().flat_map(|s| &s.queue.tasks);
        let ranges = tasks.flat_map(|t| t.work.actions()).filter_map(|a| a.host());
        ranges
            .into_iter()
            .any(|(at, n)| at < address + bytes && address < at + n)
    }

    // -- contexts and streams -----------------------------------------------------------------------

    pub fn open_context(&mut self, device: usize) -> Handle {
        let handle = self.handle();
        let legacy = self.open_stream(handle, true);
        let context = Context {
            device,
            lost: None,
            legacy,
            threads: HashMap::new(),
        };
        self.contexts.insert(handle, context);
        handle
    }

    /// Everything of a context goes with it.
    pub fn close_context(&mut self, handle: Handle) {
        let Some(context) = self.contexts.remove(&handle) else {
            return;
        };
        let (pieces, bytes) = self.memory.forget(context.device);
        if pieces > 0 {
            self.leaked += pieces;
            self.report(format!("{pieces} allocations of {bytes} bytes were never freed"));
        }
        for stream in self.streams.values().filter(|s| s.context == handle) {
            for task in &stream.queue.tasks {
                self.unfinished.remove(&task.number);
            }
        }
        self.streams.retain(|_, s| s.context != handle);
        self.events.retain(|_, e| e.context != handle);
        self.modules.retain(|_, m| m.context != handle);
        let modules = &self.modules;
        self.functions.retain(|_, f| modules.contains_key(&f.module));
    }

    pub fn open_stream(&mut self, context: Handle, blocking: bool) -> Handle {
        let handle = self.handle();
        let stream = Stream {
            context,
            blocking,
            destroyed: false,
            capture: None,
            last: 0,
            queue: Queue::default(),
        };
        self.streams.insert(handle, stream);
        handle
    }

    /// Its work is still done.
    pub fn destroy_stream(&mut self, handle: Handle) {
        let Some(stream) = self.streams.get_mut(&handle) else {
            return;
        };
        stream.destroyed = true;
        if stream.queue.tasks.is_empty() {
            self.streams.remove(&handle);
        }
    }

    /// The stream that a handle means on this thread, in this context.
    pub fn stream(&mut self, context: Handle, handle: Handle) -> Result<Handle> {
        let found = match handle {
            0 | LEGACY => self.contexts[&context].legacy,
            PER_THREAD => {
                let thread = thread::current().id();
                match self.contexts[&context].threads.get(&thread) {
                    Some(&own) => own,
                    None => {
                        let own = self.open_stream(context, true);
                        let known = self.contexts.get_mut(&context);
                        known.map(|c| c.threads.insert(thread, own));
                        own
                    }
                }
            }
            other => other,
        };
        match self.streams.get(&found) {
            Some(stream) if stream.destroyed => Err(Code::INVALID_HANDLE),
            Some(stream) if stream.context == context => Ok(found),
            Some(_) => Err(Code::INVALID_CONTEXT),
            None => Err(Code::INVALID_HANDLE),
        }
    }

    fn is_legacy(&self, stream: Handle) -> bool {
        self.contexts
            .get(&self.streams[&stream].context)
            .is_some_and(|c| c.legacy == stream)
    }

    /// Gives a stream something to do; a captured one notes it instead, and there is no task then.
    pub fn submit(&mut self, stream: Handle, action: Action) -> Result<Option<u64>> {
        if let Some(capture) = self.capture_of(stream)? {
            self.note(capture, stream, action);
            return Ok(None);
        }
        Ok(Some(self.enqueue(stream, Vec::new(), Work::One(action))))
    }

    pub fn enqueue(&mut self, stream: Handle, mut waits: Vec<u64>, work: Work) -> u64 {
        let legacy = self.is_legacy(stream);
        let own = &self.streams[&stream];
        let (context, blocking) = (own.context, own.blocking);
        // The legacy stream waits for all that are not apart from it, and they for it.
        for other in self.streams.values().filter(|s| s.context == context && s.blocking) {
            let others = self.contexts.get(&context).map(|c| c.legacy);
            let is_legacy = others.is_some_and(|l| std::ptr::eq(other, &self.streams[&l]));
            if blocking && (legacy || is_legacy) && other.last != 0 {
                waits.push(other.last);
            }
        }
        self.tasks += 1;
        let number = self.tasks;
        self.unfinished.insert(number);
        if let Some(stream) = self.streams.get_mut(&stream) {
            // What is before it in its own stream is before it in the queue.
            waits.retain(|&w| stream.queue.tasks.iter().all(|t| t.number != w));
            stream.last = number;
            stream.queue.tasks.push_back(Task {
                number,
                context,
                waits,
                work,
            });
        }
        number
    }

    pub fn last_task(&self, stream: Handle) -> u64 {
        self.streams.get(&stream).map_or(0, |s| s.last)
    }

    pub fn nodes(work: &[Node]) -> Work {
        Work::Graph {
            nodes: work.to_vec(),
            left: (0..work.len()).collect(),
        }
    }
}
