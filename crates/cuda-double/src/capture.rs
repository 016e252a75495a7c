//! What the manual allows in a capture, and how one becomes a graph.

use std::collections::HashMap;
use std::thread;

use crate::codes::{Code, Result};
use crate::driver::{Recorded, World};
use crate::work::{Action, Capture, Graph, Handle, Mode, Node};

impl World {
    /// The capture that a stream is in; an error where that one is broken already.
    pub fn capture_of(&self, stream: Handle) -> Result<Option<Handle>> {
        let Some(capture) = self.streams[&stream].capture else {
            return Ok(None);
        };
        match self.captures[&capture].invalid {
            true => Err(Code::STREAM_CAPTURE_INVALIDATED),
            false => Ok(Some(capture)),
        }
    }

    pub fn note(&mut self, capture: Handle, stream: Handle, action: Action) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            let after = capture.tails.get(&stream).cloned().unwrap_or_default();
            capture.nodes.push(Node { action, after });
            capture.tails.insert(stream, vec![capture.nodes.len() - 1]);
        }
    }

    pub fn invalidate(&mut self, capture: Handle) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.invalid = true;
        }
    }

    /// A call that needs the stream outside of a capture: inside it breaks it.
    pub fn not_captured(&mut self, stream: Handle) -> Result {
        match self.streams[&stream].capture {
            None => Ok(()),
            Some(capture) => {
                self.invalidate(capture);
                Err(Code::STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }

    /// A call that may wait, allocate or load behind the caller's back: no capture may be under way that forbids it.
    pub fn not_unsafe(&mut self) -> Result {
        let here = thread::current().id();
        let forbids = |c: &Capture| match c.mode {
            Mode::Global => true,
            Mode::ThreadLocal => c.thread == here,
            Mode::Relaxed => false,
        };
        let broken: Vec<Handle> = self
            .captures
            .iter()
            .filter(|(_, c)| forbids(c))
            .map(|(&h, _)| h)
            .collect();
        broken.iter().for_each(|&capture| self.invalidate(capture));
        match broken.is_empty() {
            true => Ok(()),
            false => Err(Code::STREAM_CAPTURE_UNSUPPORTED),
        }
    }

    /// The legacy stream waits for every stream that is not apart from it, captured ones too, which cannot be.
    pub fn not_implicit(&mut self, context: Handle, legacy: bool) -> Result {
        if !legacy {
            return Ok(());
        }
        let streams = self.streams.values().filter(|s| s.context == context);
        let captures: Vec<Handle> = streams.filter_map(|s| s.capture).collect();
        let strict = |c: &Handle| self.captures[c].mode != Mode::Relaxed;
        let broken: Vec<Handle> = captures.into_iter().filter(strict).collect();
        broken.iter().for_each(|&capture| self.invalidate(capture));
        match broken.is_empty() {
            true => Ok(()),
            false => Err(Code::STREAM_CAPTURE_IMPLICIT),
        }
    }

    pub fn any_capture_in(&self, context: Handle) -> Option<Handle> {
        self.streams
            .values()
            .filter(|s| s.context == context)
            .find_map(|s| s.capture)
    }

    pub fn begin_capture(&mut self, stream: Handle, mode: Mode) -> Result {
        if self.streams[&stream].capture.is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        let handle = self.handle();
        let capture = Capture {
            mode,
            thread: thread::current().id(),
            origin: stream,
            invalid: false,
            nodes: Vec::new(),
            tails: HashMap::from([(stream, Vec::new())]),
            events: HashMap::new(),
        };
        self.captures.insert(handle, capture);
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.capture = Some(handle);
        }
        Ok(())
    }

    pub fn end_capture(&mut self, stream: Handle) -> Result<Handle> {
        let handle = self.streams[&stream].capture.ok_or(Code::ILLEGAL_STATE)?;
        let capture = &self.captures[&handle];
        if capture.origin != stream {
            self.invalidate(handle);
            return Err(Code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        for stream in self.streams.values_mut().filter(|s| s.capture == Some(handle)) {
            stream.capture = None;
        }
        for event in self.events.values_mut() {
            if matches!(event.recorded, Recorded::Captured(c) if c == handle) {
                event.recorded = Recorded::Never;
            }
        }
        let Some(capture) = self.captures.remove(&handle) else {
            return Err(Code::ILLEGAL_STATE);
        };
        if capture.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        // Every end of a fork comes before the origin's.
        let mut joined: Vec<usize> = capture.tails[&stream].clone();
        let mut reached = vec![false; capture.nodes.len()];
        while let Some(node) = joined.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                joined.extend(&capture.nodes[node].after);
            }
        }
        if reached.contains(&false) {
            return Err(Code::STREAM_CAPTURE_UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, Graph { nodes: capture.nodes });
        Ok(graph)
    }

    /// 0: none, 1: active, 2: broken.
    pub fn capture_status(&self, stream: Handle) -> u32 {
        match self.streams[&stream].capture {
            None => 0,
            Some(capture) => 1 + u32::from(self.captures[&capture].invalid),
        }
    }

    pub fn record_in_capture(&mut self, capture: Handle, stream: Handle, event: Handle) {
        if let Some(state) = self.captures.get_mut(&capture) {
            let tail = state.tails.get(&stream).cloned().unwrap_or_default();
            state.events.insert(event, tail);
        }
        if let Some(event) = self.events.get_mut(&event) {
            event.recorded = Recorded::Captured(capture);
        }
    }

    /// A stream waits for an event of a capture, and is in the capture from then on.
    pub fn join_capture(&mut self, capture: Handle, stream: Handle, event: Handle) -> Result {
        match self.capture_of(stream)? {
            Some(own) if own != capture => {
                self.invalidate(own);
                self.invalidate(capture);
                return Err(Code::STREAM_CAPTURE_MERGE);
            }
            _ => {}
        }
        let Some(state) = self.captures.get_mut(&capture) else {
            return Err(Code::CAPTURED_EVENT);
        };
        if state.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let mut after = state.tails.get(&stream).cloned().unwrap_or_default();
        after.extend(state.events.get(&event).into_iter().flatten());
        after.sort_unstable();
        after.dedup();
        state.tails.insert(stream, after);
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.capture = Some(capture);
        }
        Ok(())
    }
}
