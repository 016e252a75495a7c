//! Memory of the cards, and pinned memory of the host.
//!
//! Device memory is host memory at addresses of its own: poisoned when it is given out and when it is taken back, between
//! zones that belong to nobody, and kept a while before the process gets it back, so that an address never means two
//! things to a test.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, VecDeque};

use crate::codes::{Code, Result};
use crate::simt::Span;

/// What the driver aligns to, and the zone on either side.
const ZONE: usize = 512;
/// Freed bytes that are kept.
const QUARANTINE: u64 = 256 << 20;
/// NaN in every float format.
const POISON: u8 = 0xff;

/// Whether memory may be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The stream has not come to its allocation.
    Coming,
    Live,
}

#[derive(Debug)]
pub struct Piece {
    pub bytes: u64,
    pub device: usize,
    pub state: State,
    /// A free is in a stream's queue.
    pub freeing: bool,
    /// The graph whose node allocates it.
    pub graph: Option<u64>,
    block: Block,
}

/// Memory of the process with a zone on either side.
#[derive(Debug)]
struct Block {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: plain memory, which the lock around the double's state guards.
unsafe impl Send for Block {}

impl Block {
    fn new(bytes: u64) -> Option<Block> {
        let size = usize::try_from(bytes).ok()?.checked_next_multiple_of(ZONE)?;
        let layout = Layout::from_size_align(size.checked_add(2 * ZONE)?, ZONE).ok()?;
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let block = (!start.is_null()).then_some(Block { start, layout })?;
        block.poison();
        Some(block)
    }

    fn address(&self) -> u64 {
        self.start as u64 + ZONE as u64
    }

    fn poison(&self) {
        // SAFETY: the block is as long.
        unsafe { std::ptr::write_bytes(self.start, POISON, self.layout.size()) };
    }

    /// Whether the zones are as they were; `bytes` lie between them.
    fn zones_hold(&self, bytes: u64) -> bool {
        // SAFETY: the block is as long.
        let all = unsafe { std::slice::from_raw_parts(self.start, self.layout.size()) };
        let end = ZONE + bytes as usize;
        all[..ZONE].iter().chain(&all[end..]).all(|&byte| byte == POISON)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.start, self.layout) };
    }
}

#[derive(Debug, Default)]
pub struct Memory {
    pieces: BTreeMap<u64, Piece>,
    pinned: BTreeMap<u64, (u64, Block)>,
    /// Bytes given out, by device.
    used: Vec<u64>,
    quarantine: VecDeque<(u64, u64, Block)>,
    kept: u64,
}

impl Memory {
    pub fn new(devices: usize) -> Memory {
        Memory {
            used: vec![0; devices],
            ..Memory::default()
        }
    }

    pub fn used(&self, device: usize) -> u64 {
        self.used[device]
    }

    pub fn reserve(&mut self, device: usize, bytes: u64, most: u64, state: State, graph: Option<u64>) -> Result<u64> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if self.used[device].saturating_add(bytes) > most {
            return Err(Code::OUT_OF_MEMORY);
        }
        let block = Block::new(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        let address = block.address();
        self.used[device] += bytes;
        let piece = Piece {
            bytes,
            device,
            state,
            freeing: false,
            graph,
            block,
        };
        self.pieces.insert(address, piece);
        Ok(address)
    }

    /// The piece that begins here.
    pub fn piece(&mut self, address: u64) -> Option<&mut Piece> {
        self.pieces.get_mut(&address)
    }

    /// Takes a piece back; a text where somebody wrote past its ends.
    pub fn release(&mut self, address: u64) -> Result<Option<String>> {
        let piece = self.pieces.remove(&address).ok_or(Code::INVALID_VALUE)?;
        self.used[piece.device] -= piece.bytes;
        let hurt = (!piece.block.zones_hold(piece.bytes)).then(|| {
            format!(
                "somebody wrote past an end of the {} bytes at {address:#x}",
                piece.bytes
            )
        });
        piece.block.poison();
        self.kept += piece.bytes;
        self.quarantine.push_back((address, piece.bytes, piece.block));
        while self.kept > QUARANTINE {
            let Some((_, bytes, _)) = self.quarantine.pop_front() else {
                break;
            };
            self.kept -= bytes;
        }
        Ok(hurt)
    }

    /// Everything of a device goes; how many pieces that were, and their bytes.
    pub fn forget(&mut self, device: usize) -> (usize, u64) {
        let all: Vec<u64> = self
            .pieces
            .iter()
            .filter(|(_, p)| p.device == device)
            .map(|(&a, _)| a)
            .collect();
        let bytes = self.used[device];
        for &address in &all {
            let _ = self.release(address);
        }
        (all.len(), bytes)
    }

    /// The piece that holds this range, which the driver knows without looking at what is under way.
    pub fn holds(&self, address: u64, bytes: u64) -> Option<&Piece> {
        let (&start, piece) = self.pieces.range(..=address).next_back()?;
        (address.checked_add(bytes)? <= start + piece.bytes).then_some(piece)
    }

    /// Why a copy may not touch the range now, when its turn has come.
    pub fn touch(&self, address: u64, bytes: u64) -> Result<(), String> {
        match self.holds(address, bytes) {
            Some(piece) if piece.state == State::Live => Ok(()),
            Some(_) => Err(format!(
                "{address:#x} is touched before its stream came to the allocation"
            )),
            None if self.quarantine.iter().any(|&(a, n, _)| (a..a + n).contains(&address)) => {
                Err(format!("{address:#x} is touched after it was freed"))
            }
            None => Err(format!(
                "{bytes} bytes at {address:#x} are touched, which are not all there"
            )),
        }
    }

    /// All memory that a kernel may touch now.
    pub fn spans(&self, device: usize) -> Vec<Span> {
        let live = self
            .pieces
            .iter()
            .filter(|(_, p)| p.state == State::Live && p.device == device);
        live.map(|(&address, piece)| Span {
            address,
            bytes: piece.bytes,
            writable: 1,
            reserved: 0,
        })
        .collect()
    }

    pub fn pin(&mut self, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let block = Block::new(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        let address = block.address();
        self.pinned.insert(address, (bytes, block));
        Ok(address)
    }

    pub fn unpin(&mut self, address: u64) -> Result<u64> {
        let (bytes, block) = self.pinned.remove(&address).ok_or(Code::INVALID_VALUE)?;
        block.poison();
        self.quarantine.push_back((address, bytes, block));
        self.kept += bytes;
        Ok(bytes)
    }

    pub fn is_pinned(&self, address: u64) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(&start, &(bytes, _))| address < start + bytes)
    }
}
