//! What the system tells of this process, and what is told to it.

/// How many threads a product of candle's has, where nobody said: left alone it reads /proc/cpuinfo for every one.
pub fn settle_threads(count: usize) {
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread runs yet: `main` parses options and calls this first of all.
            unsafe { std::env::set_var(name, count.to_string()) };
        }
    }
}

/// Has [`peak_rss_bytes`] begin anew, where the system can.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Memory that programs can have without another losing it, where the system tells.
pub fn available_bytes() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

/// The most memory that this process held since its beginning or [`forget_peak`], where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let told = std::fs::read_to_string(file).ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
