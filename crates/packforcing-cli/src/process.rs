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

/// The most memory that this process ever held, where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
