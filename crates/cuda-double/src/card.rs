//! The cards that the double stands for, by its variables.

use std::env;

#[derive(Debug, Clone)]
pub struct Settings {
    pub capability: (u32, u32),
    pub devices: usize,
    pub multiprocessors: u32,
    /// Bytes of each device's memory.
    pub memory: u64,
    pub seed: u64,
    /// Whether pageable host memory is read by the card, late.
    pub reads_pageable: bool,
    /// Which call of which function fails with what, counted from 1.
    pub failures: Vec<Failure>,
    pub trace: bool,
    /// As `cuDriverGetVersion` says it: 13000.
    pub driver: u32,
    /// The newest toolkit whose PTX is met: the images' own, 0 where it is not known.
    pub toolkit: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub call: String,
    pub number: u64,
    pub code: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            capability: (9, 0),
            devices: 1,
            multiprocessors: 132,
            memory: 4 << 30,
            seed: 0,
            reads_pageable: false,
            failures: Vec::new(),
            trace: false,
            driver: 13000,
            toolkit: 0,
        }
    }
}

impl Settings {
    /// What the variables say; a value that is not understood ends the process, because a test that ran on another card
    /// than the one asked for would say nothing.
    pub fn from_env() -> Settings {
        let mut settings = Settings::default();
        let number = |name: &str, default: u64| match env::var(name) {
            Ok(text) => text.trim().parse().unwrap_or_else(|_| refuse(name, &text)),
            Err(_) => default,
        };
        let arch = number("CUDA_DOUBLE_ARCH", 90) as u32;
        if !matches!(arch, 70..=130) {
            refuse("CUDA_DOUBLE_ARCH", &arch.to_string())
        }
        settings.capability = (arch / 10, arch % 10);
        settings.devices = number("CUDA_DOUBLE_DEVICES", 1) as usize;
        settings.multiprocessors = number("CUDA_DOUBLE_SMS", 132) as u32;
        settings.memory = number("CUDA_DOUBLE_MEMORY", settings.memory);
        settings.seed = number("CUDA_DOUBLE_SEED", 0);
        settings.reads_pageable = number("CUDA_DOUBLE_PAGEABLE", 0) != 0;
        settings.trace = number("CUDA_DOUBLE_TRACE", 0) != 0;
        if let Ok(text) = env::var("CUDA_DOUBLE_FAIL") {
            let each = text.split(',').filter(|one| !one.is_empty());
            settings.failures = each
                .map(|one| Failure::parse(one).unwrap_or_else(|| refuse("CUDA_DOUBLE_FAIL", one)))
                .collect();
        }
        settings
    }

    /// Bytes of shared memory that a block may ask for.
    pub fn shared_limit(&self) -> u32 {
        1024 * match self.capability {
            (8, 0) => 163,
            (8, 7) => 163,
            (8, _) | (12, _) => 99,
            (7, 5) => 64,
            (7, _) => 96,
            _ => 227,
        }
    }

    /// A `CUdevice_attribute` by its number.
    pub fn attribute(&self, number: u32) -> Option<i32> {
        let value = match number {
            1 => 1024,                               // threads a block
            2 | 3 => 1024,                           // block x, y
            4 => 64,                                 // block z
            5 => i32::MAX,                           // grid x
            6 | 7 => 65_535,                         // grid y, z
            8 => 48 * 1024,                          // shared memory a block, unasked
            9 => 64 * 1024,                          // constant memory
            10 => 32,                                // a warp
            12 | 82 => 65_536,                       // registers of a block, of a multiprocessor
            13 | 36 => 1_000_000,                    // clocks, in kHz
            15 | 31 | 41 | 95 => 1, // overlap, concurrent kernels, unified addressing, cooperative launch
            16 => self.multiprocessors as i32, //
            37 => 5120,             // bits of the memory's bus
            38 => 50 << 20,         // L2
            39 => 2048,             // threads a multiprocessor
            40 => 3,                // copy engines
            75 => self.capability.0 as i32, //
            76 => self.capability.1 as i32, //
            81 => self.shared_limit() as i32 + 1024, // shared memory of a multiprocessor
            88 | 100 => self.reads_pageable.into(), // reads pageable memory, through the host's tables
            97 => self.shared_limit() as i32, // shared memory a block, asked for
            106 => 32,              // blocks a multiprocessor
            111 => 1024,            // shared memory that the driver keeps
            115 => 1,               // memory pools
            n if n < 160 => 0,
            _ => return None,
        };
        Some(value)
    }
}

impl Failure {
    pub fn parse(text: &str) -> Option<Failure> {
        let mut parts = text.split(':');
        let failure = Failure {
            call: parts.next()?.trim().to_string(),
            number: parts.next()?.trim().parse().ok()?,
            code: parts.next()?.trim().parse().ok()?,
        };
        (parts.next().is_none() && failure.number > 0).then_some(failure)
    }
}

fn refuse(name: &str, value: &str) -> ! {
    eprintln!("cuda double: {name}={value} is not understood");
    std::process::exit(2)
}
