//! What streams are given to do, and what captures take down of it.

use std::collections::{HashMap, VecDeque};
use std::thread::ThreadId;

use crate::simt::Launch;

/// Handles are numbers: nothing is ever read through one.
pub type Handle = u64;

/// Where a copy reads on the host.
#[derive(Clone)]
pub enum Source {
    /// Pageable memory, read when the call was made.
    Staged(Vec<u8>),
    /// Pinned memory, which is read when the copy's turn comes.
    Host(u64),
}

#[derive(Clone)]
pub enum Action {
    /// Nothing: it only waits.
    Join,
    Launch(Box<Launch>),
    CopyIn {
        to: u64,
        from: Source,
        bytes: u64,
    },
    CopyOut {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Set {
        to: u64,
        value: u8,
        bytes: u64,
    },
    Allocate(u64),
    Free(u64),
    Record(Handle),
}

/// One piece of a graph's work, after others of the graph.
#[derive(Clone)]
pub struct Node {
    pub action: Action,
    pub after: Vec<usize>,
}

/// `CUstreamCaptureMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

/// Work that a stream takes down instead of doing it.
pub struct Capture {
    pub mode: Mode,
    pub thread: ThreadId,
    /// Where it began and where it ends.
    pub origin: Handle,
    pub invalid: bool,
    pub nodes: Vec<Node>,
    /// What the next node of each stream in it comes after.
    pub tails: HashMap<Handle, Vec<usize>>,
    /// The same of each event that was recorded in it.
    pub events: HashMap<Handle, Vec<usize>>,
}

/// What a capture took down.
pub struct Graph {
    pub nodes: Vec<Node>,
}

/// A graph made ready to be launched.
pub struct Exec {
    pub nodes: Vec<Node>,
    /// Its newest launch: launches of one graph follow each other.
    pub last: u64,
}

pub enum Work {
    One(Action),
    /// The nodes that are still to do, each once those before it are done.
    Graph {
        nodes: Vec<Node>,
        left: Vec<usize>,
    },
}

pub struct Task {
    pub number: u64,
    pub context: Handle,
    /// Tasks of other streams that come before it.
    pub waits: Vec<u64>,
    pub work: Work,
}

#[derive(Default)]
pub struct Queue {
    pub tasks: VecDeque<Task>,
    /// A kernel of the first task is running.
    pub running: bool,
}

impl Action {
    /// Host memory that it is still to read or write.
    pub fn host(&self) -> Option<(u64, u64)> {
        match *self {
            Action::CopyIn {
                from: Source::Host(at),
                bytes,
                ..
            } => Some((at, bytes)),
            Action::CopyOut { to, bytes, .. } => Some((to, bytes)),
            _ => None,
        }
    }
}

impl Work {
    pub fn actions(&self) -> Vec<&Action> {
        match self {
            Work::One(action) => vec![action],
            Work::Graph { nodes, left } => left.iter().map(|&i| &nodes[i].action).collect(),
        }
    }
}
