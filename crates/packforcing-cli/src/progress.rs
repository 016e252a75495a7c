//! How far it is and how long it will take: a bar for who looks at a terminal, a line a minute for who reads a file later.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines.
const MINUTE: Duration = Duration::from_secs(60);

/// Steps of some work.
pub struct Bar {
    bar: ProgressBar,
    of: String,
    /// When a line was written; none where a bar is shown.
    line: Option<Mutex<Cell<Instant>>>,
}

/// A bar of so many steps; its message stands at the end.
pub fn bar(steps: usize, of: &str) -> Bar {
    let template = format!("{{bar:32}} {{pos}} of {{len}} {of}, {{eta}} left  {{msg}}");
    // A template of our own that were refused would be replaced by indicatif's.
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(steps as u64).with_style(style);
    let shown = stderr().is_terminal();
    if shown {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    Bar {
        bar,
        of: of.into(),
        line: (!shown).then(|| Mutex::new(Cell::new(Instant::now()))),
    }
}

impl Bar {
    /// A step is done.
    pub fn inc(&self) {
        self.bar.inc(1);
        let Some(Ok(line)) = self.line.as_ref().map(Mutex::try_lock) else {
            return;
        };
        if line.get().elapsed() >= MINUTE {
            line.set(Instant::now());
            let (done, all, left) = (
                self.bar.position(),
                self.bar.length().unwrap_or(0),
                self.bar.eta().as_secs(),
            );
            eprintln!("{done} of {all} {}, {left} s left  {}", self.of, self.bar.message());
        }
    }

    /// So many steps were done before.
    pub fn begin_at(&self, steps: u64) {
        self.bar.set_position(steps);
        self.bar.reset_eta();
    }

    pub fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Prints without the bar in the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
