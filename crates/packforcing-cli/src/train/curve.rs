//! Losses of a run: a file that grows with it, and a picture.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::chart::{self, BLUE, Line, Panel, Style};
use crate::output;

const LOSSES: &str = "losses.csv";
/// Steps that the loss is averaged over where it is told.
const RECENT: usize = 100;
/// Points of the picture.
const POINTS: usize = 200;

pub struct Curve {
    folder: PathBuf,
    losses: Vec<f64>,
}

impl Curve {
    pub fn new(folder: &Path) -> Curve {
        Curve {
            folder: folder.into(),
            losses: Vec::new(),
        }
    }

    /// The losses of an earlier run, as far as its checkpoint reaches.
    pub fn read(&mut self, steps: u64) -> Result<()> {
        let file = self.folder.join(LOSSES);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let losses = text.lines().skip(1).take(steps as usize).map(|line| {
            let loss = line.split_once(',').and_then(|(_, loss)| loss.parse().ok());
            loss.with_context(|| format!("{}: not a line of losses: {line:?}", file.display()))
        });
        self.losses = losses.collect::<Result<_>>()?;
        ensure!(
            self.losses.len() as u64 == steps,
            "{}: {} losses, and the checkpoint has {steps} steps",
            file.display(),
            self.losses.len()
        );
        Ok(())
    }

    pub fn add(&mut self, loss: f64) {
        self.losses.push(loss);
    }

    /// Mean of the last steps.
    pub fn recent(&self) -> f64 {
        mean(&self.losses[self.losses.len().saturating_sub(RECENT)..])
    }

    pub fn write(&self) -> Result<()> {
        let mut text = String::from("step,loss\n");
        for (step, loss) in self.losses.iter().enumerate() {
            text.push_str(&format!("{step},{loss}\n"));
        }
        output::write(&self.folder, LOSSES, text.as_bytes())?;
        let each = self.losses.len().div_ceil(POINTS).max(1);
        let points = self.losses.chunks(each).enumerate();
        let points = points.map(|(i, losses)| ((i as f64 + 0.5) * each as f64, mean(losses)));
        let panel = Panel {
            title: format!("loss, means over {each} steps"),
            x: "steps".into(),
            lines: vec![Line {
                points: points.collect(),
                style: Style {
                    color: BLUE,
                    dashed: false,
                    marked: false,
                },
            }],
            end: self.losses.len() as f64,
            log: true,
            top: None,
        };
        output::write(&self.folder, "loss.png", &chart::one(&panel, 900, 500)?.png()?)
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}
