//! Bars that say how far it is and how long it will take.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of so many steps; its message stands at the end.
pub fn bar(steps: usize, of: &str) -> ProgressBar {
    let template = format!("{{bar:32}} {{pos}} of {{len}} {of}, {{eta}} left  {{msg}}");
    // A template of our own that were refused would be replaced by indicatif's.
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(steps as u64).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
