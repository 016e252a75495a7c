//! Threads that something belongs to.

use std::fmt;
use std::thread;

use crate::error::{Error, Result};

/// A thread, by its number and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Thread {
    id: thread::ThreadId,
    name: Option<String>,
}

impl Thread {
    pub fn here() -> Thread {
        let current = thread::current();
        Thread {
            id: current.id(),
            name: current.name().map(str::to_string),
        }
    }

    pub fn is_here(&self) -> bool {
        self.id == thread::current().id()
    }

    /// An error on any other thread; `what` belongs to this one.
    pub fn ensure_here(&self, what: &'static str) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        Err(Error::WrongThread {
            what,
            owner: self.to_string(),
            here: Thread::here().to_string(),
        })
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name:?} ({:?})", self.id),
            None => write!(f, "{:?}", self.id),
        }
    }
}
