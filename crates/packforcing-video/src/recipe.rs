//! How published few-step weights are sampled: one preset for each family.
//!
//! The files all have the same 825 names, so a file does not say whose it is. Numbers are those of the families' own code and
//! configurations: Self-Forcing (arXiv 2506.08009), CausVid (arXiv 2412.07772), Causal-Forcing, LongLive (arXiv 2509.22622),
//! Rolling Forcing (arXiv 2509.25161).

use std::fmt;
use std::str::FromStr;

use packforcing::schedule::Schedule;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A family of few-step weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// Self-Forcing (DMD): four steps, blocks of 3 frames.
    SelfForcing,
    /// CausVid: three steps whose times the model is told as they are.
    CausVid,
    /// CausVid's model of four steps.
    CausVidFourStep,
    /// Causal-Forcing in blocks of 3 frames.
    CausalForcing,
    /// Causal-Forcing, frame by frame.
    CausalForcingFramewise,
    /// Causal-Forcing++ frame by frame in two steps.
    CausalForcingTwoStep,
    /// Causal-Forcing++ frame by frame in one step.
    CausalForcingOneStep,
    /// LongLive 1.0, with its adapter: a window of 12 frames with a sink of 3.
    LongLive,
    /// Rolling Forcing, whose blocks are denoised together, each at a level of its own: another sampler, which is not here.
    RollingForcing,
}

/// The numbers of a recipe.
struct Preset {
    name: &'static str,
    timesteps: &'static [f64],
    /// Of the first block, where it differs.
    first: Option<&'static [f64]>,
    /// Whether time steps are moved by the shift, or are what the model is told.
    warped: bool,
    shift: f64,
    block_frames: usize,
    cache_frames: usize,
    sink_frames: usize,
    placed_frames: usize,
}

const FOUR: &[f64] = &[1000.0, 750.0, 500.0, 250.0];

const SELF_FORCING: Preset = Preset {
    name: "self-forcing",
    timesteps: FOUR,
    first: None,
    warped: true,
    shift: 5.0,
    block_frames: 3,
    cache_frames: 21,
    sink_frames: 0,
    placed_frames: 21,
};

impl Recipe {
    /// All of them.
    pub const ALL: [Recipe; 9] = [
        Recipe::SelfForcing,
        Recipe::CausVid,
        Recipe::CausVidFourStep,
        Recipe::CausalForcing,
        Recipe::CausalForcingFramewise,
        Recipe::CausalForcingTwoStep,
        Recipe::CausalForcingOneStep,
        Recipe::LongLive,
        Recipe::RollingForcing,
    ];

    fn preset(self) -> Preset {
        let framewise = |name, timesteps, first| Preset {
            name,
            timesteps,
            first,
            block_frames: 1,
            ..SELF_FORCING
        };
        match self {
            Recipe::SelfForcing => SELF_FORCING,
            Recipe::CausVid => Preset {
                name: "causvid",
                timesteps: &[1000.0, 757.0, 522.0],
                warped: false,
                shift: 8.0,
                ..SELF_FORCING
            },
            Recipe::CausVidFourStep => Preset {
                name: "causvid-4-step",
                shift: 8.0,
                ..SELF_FORCING
            },
            Recipe::CausalForcing => Preset {
                name: "causal-forcing",
                ..SELF_FORCING
            },
            Recipe::CausalForcingFramewise => framewise("causal-forcing-framewise", FOUR, None),
            Recipe::CausalForcingTwoStep => framewise("causal-forcing-2-step", &[1000.0, 500.0], Some(FOUR)),
            Recipe::CausalForcingOneStep => framewise("causal-forcing-1-step", &[1000.0], Some(FOUR)),
            Recipe::LongLive => Preset {
                name: "longlive",
                cache_frames: 12,
                sink_frames: 3,
                placed_frames: 960,
                ..SELF_FORCING
            },
            Recipe::RollingForcing => Preset {
                name: "rolling-forcing",
                timesteps: &[1000.0, 800.0, 600.0, 400.0, 200.0],
                cache_frames: 24,
                sink_frames: 3,
                ..SELF_FORCING
            },
        }
    }

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        self.preset().name
    }

    /// The steps of a block; `first` says whether it is the video's first.
    ///
    /// # Errors
    ///
    /// A recipe whose sampler is not here: [`Recipe::RollingForcing`].
    pub fn schedule(self, first: bool) -> Result<Schedule> {
        if self == Recipe::RollingForcing {
            return Err(Error::argument(
                "recipe",
                "one whose blocks are made one after the other",
                "rolling-forcing, which denoises five blocks together, each at a level of its own",
            ));
        }
        let preset = self.preset();
        let timesteps = preset.first.filter(|_| first).unwrap_or(preset.timesteps);
        Ok(match preset.warped {
            true => Schedule::few_step(timesteps, preset.shift)?,
            false => Schedule::few_step_as_told(timesteps, preset.shift)?,
        })
    }

    /// What the model is told when a clean block goes in to be kept.
    pub fn commit_timestep(self) -> f64 {
        0.0
    }

    /// Frames of a block.
    pub fn block_frames(self) -> usize {
        self.preset().block_frames
    }

    /// Frames that a block attends to at most, its own among them, in the family's own code: what the weights were trained
    /// with.
    pub fn cache_frames(self) -> usize {
        self.preset().cache_frames
    }

    /// Of those, frames from the beginning of the video that stay for good.
    pub fn sink_frames(self) -> usize {
        self.preset().sink_frames
    }

    /// Frames from the beginning of a video at whose places the weights were trained: five seconds of latents, and for LongLive
    /// the four minutes that its authors tell of.
    pub fn placed_frames(self) -> usize {
        self.preset().placed_frames
    }

    /// Whose weights a file holds, by its path and whether an adapter goes with it; and by what that was told. Nothing where nothing tells it: plain Wan2.1 is not sampled in few steps.
    ///
    /// ```
    /// use packforcing_video::Recipe;
    ///
    /// let guess = Recipe::guess("checkpoints/self_forcing_dmd.pt".as_ref(), false);
    /// assert_eq!(guess, Some((Recipe::SelfForcing, "the name self_forcing_dmd.pt".into())));
    /// assert_eq!(Recipe::guess("diffusion_pytorch_model.safetensors".as_ref(), false), None);
    /// ```
    pub fn guess(path: &std::path::Path, with_lora: bool) -> Option<(Recipe, String)> {
        let own = path
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        // Wan2.1 itself, wherever it lies, and stages of the families' training that are sampled in many steps.
        let many = [
            "diffusion_pytorch_model",
            "ode_init",
            "ar_diffusion",
            "causal_ode",
            "causal_cd",
        ];
        if many.iter().any(|name| own.starts_with(name)) {
            return None;
        }
        // The file's own name first, then those of the folders that it lies in.
        let parts = path.iter().rev().map(|part| part.to_string_lossy().into_owned());
        let told = parts.take(4).find_map(|part| {
            let plain: String = part
                .to_lowercase()
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .collect();
            let has = |what: &str| plain.contains(what);
            let framewise = || path.to_string_lossy().to_lowercase().contains("framewise");
            let recipe = match () {
                () if has("longlive") => Recipe::LongLive,
                () if has("rollingforcing") || has("longvideo") => Recipe::RollingForcing,
                () if has("framewise2step") => Recipe::CausalForcingTwoStep,
                () if has("framewise1step") => Recipe::CausalForcingOneStep,
                () if has("causalforcing") && framewise() => Recipe::CausalForcingFramewise,
                () if has("causalforcing") => Recipe::CausalForcing,
                () if has("selfforcing") => Recipe::SelfForcing,
                () if has("warp4step") => Recipe::CausVidFourStep,
                () if has("causvid") || has("autoregressivecheckpoint") => Recipe::CausVid,
                () => return None,
            };
            Some((recipe, format!("the name {part}")))
        });
        match told {
            None if with_lora => Some((Recipe::LongLive, "the adapter beside it".into())),
            told => told,
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Recipe {
    type Err = Error;

    fn from_str(name: &str) -> Result<Recipe> {
        let found = Recipe::ALL.into_iter().find(|recipe| recipe.name() == name);
        found.ok_or_else(|| {
            let names = Recipe::ALL.map(Recipe::name).join(", ");
            Error::argument("recipe", format!("one of {names}"), name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_told_by_names_and_by_an_adapter() {
        for (path, recipe) in [
            ("checkpoints/self_forcing_dmd.pt", Recipe::SelfForcing),
            ("CausVid/autoregressive_checkpoint/model.pt", Recipe::CausVid),
            (
                "autoregressive_checkpoint_warp_4step_cfg2/model.pt",
                Recipe::CausVidFourStep,
            ),
            ("longlive_models/models/longlive_base.pt", Recipe::LongLive),
            ("chunkwise/causal_forcing.pt", Recipe::CausalForcing),
            ("framewise/causal_forcing.pt", Recipe::CausalForcingFramewise),
            ("causal-forcing++/framewise-2step.pt", Recipe::CausalForcingTwoStep),
            ("causal-forcing++/framewise-1step.pt", Recipe::CausalForcingOneStep),
            ("checkpoints/rolling_forcing_dmd.pt", Recipe::RollingForcing),
            ("chunkwise/longvideo.pt", Recipe::RollingForcing),
        ] {
            let guess = Recipe::guess(path.as_ref(), false);
            assert_eq!(guess.map(|(recipe, _)| recipe), Some(recipe), "{path}");
        }
        assert_eq!(Recipe::guess("model.pt".as_ref(), false), None);
        for plain in [
            "Self-Forcing/wan_models/diffusion_pytorch_model.safetensors",
            "Self-Forcing/ode_init.pt",
        ] {
            assert_eq!(Recipe::guess(plain.as_ref(), true), None, "{plain}");
        }
        let with = Recipe::guess("model.pt".as_ref(), true);
        assert_eq!(with, Some((Recipe::LongLive, "the adapter beside it".into())));
    }

    #[test]
    fn names_lead_back() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.name().parse::<Recipe>().ok(), Some(recipe));
            assert_eq!(recipe.schedule(true).is_ok(), recipe != Recipe::RollingForcing);
        }
        let said = "self_forcing"
            .parse::<Recipe>()
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(said.contains("one of self-forcing, causvid"), "{said}");
    }

    #[test]
    fn the_first_frame_of_few_steps_takes_four() {
        let steps = |recipe: Recipe, first| recipe.schedule(first).map(|s| s.steps().len()).unwrap_or(0);
        for (recipe, few) in [
            (Recipe::CausalForcingTwoStep, 2),
            (Recipe::CausalForcingOneStep, 1),
            (Recipe::LongLive, 4),
        ] {
            assert_eq!((steps(recipe, true), steps(recipe, false)), (4, few), "{recipe}");
        }
    }
}
