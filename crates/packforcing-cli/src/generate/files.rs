//! Where the parts of a model lie, in files and folders as people have downloaded them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Files that the user names one by one; what is not named is looked for.
#[derive(Debug, Default)]
pub struct Named {
    pub lora: Option<PathBuf>,
    pub text: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub vae: Option<PathBuf>,
    pub preview: Option<PathBuf>,
}

/// The parts; those that are not there are empty. Several files of one part are its shards.
#[derive(Debug, Default, PartialEq)]
pub struct Files {
    pub transformer: Vec<PathBuf>,
    pub lora: Option<PathBuf>,
    pub text: Vec<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub vae: Vec<PathBuf>,
    pub preview: Option<PathBuf>,
}

/// What is found of one part, each with its shards.
type Candidates = Vec<Vec<PathBuf>>;

#[derive(Default)]
struct Found {
    /// Named by the user, found in a folder, and plain Wan in safetensors.
    given: Candidates,
    released: Candidates,
    base: Candidates,
    lora: Candidates,
    text: Candidates,
    tokenizer: Candidates,
    vae: Candidates,
    preview: Candidates,
}

impl Files {
    /// Looks through what the user named.
    pub fn find(models: &[PathBuf], named: Named) -> Result<Files> {
        let mut found = Found::default();
        for model in models {
            let about = std::fs::metadata(model).with_context(|| format!("--model {}", model.display()))?;
            match about.is_dir() {
                true => found.folder(model)?,
                false => found.file(model),
            }
        }
        let one = |what: &str, option: &str, named: Option<PathBuf>, found: Candidates| -> Result<Vec<PathBuf>> {
            match (named, &found[..]) {
                (Some(named), _) => shards(&named),
                (None, []) => Ok(Vec::new()),
                (None, [only]) => Ok(only.clone()),
                (None, several) => {
                    let names: Vec<String> = several
                        .iter()
                        .flatten()
                        .map(|path| path.display().to_string())
                        .collect();
                    bail!(
                        "more than one {what}: {}; {option} names the one that is meant",
                        names.join(", ")
                    )
                }
            }
        };
        let transformer = [found.given, found.released, found.base]
            .into_iter()
            .find(|some| !some.is_empty());
        let single = |files: Vec<PathBuf>| files.into_iter().next();
        Ok(Files {
            transformer: one("transformer", "--model FILE", None, transformer.unwrap_or_default())?,
            lora: single(one("adapter", "--lora", named.lora, found.lora)?),
            text: one("text encoder", "--text", named.text, found.text)?,
            tokenizer: single(one("tokenizer", "--tokenizer", named.tokenizer, found.tokenizer)?),
            vae: one("autoencoder", "--vae", named.vae, found.vae)?,
            preview: single(one("preview decoder", "--preview", named.preview, found.preview)?),
        })
    }
}

/// A file, or the safetensors of a folder.
fn shards(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let files = listed(path, &|name| name.ends_with(".safetensors") || name == "tokenizer.json")?;
    match files.is_empty() {
        true => bail!("{}: no safetensors in this folder", path.display()),
        false => Ok(files),
    }
}

/// Files of a folder by their names, in order; none where there is no such folder.
fn listed(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && wanted(&name) && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn add(candidates: &mut Candidates, files: Vec<PathBuf>) {
    if !files.is_empty() && !candidates.contains(&files) {
        candidates.push(files);
    }
}

impl Found {
    /// A file says by its name which part it is; what says nothing is a transformer.
    fn file(&mut self, path: &Path) {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        let part = match () {
            () if name.contains("lora") => &mut self.lora,
            () if name.contains("t5") => &mut self.text,
            () if name.starts_with("tae") => &mut self.preview,
            () if name.contains("vae") => &mut self.vae,
            () if name == "tokenizer.json" => &mut self.tokenizer,
            () => &mut self.given,
        };
        add(part, vec![path.to_path_buf()]);
    }

    fn folder(&mut self, folder: &Path) -> Result<()> {
        let at = |name: &str| folder.join(name);
        let there = |name: &str| if at(name).is_file() { vec![at(name)] } else { Vec::new() };
        // Wan's own layout, and diffusers'.
        let diffusion = |name: &str| name.starts_with("diffusion_pytorch_model") && name.ends_with(".safetensors");
        let safetensors = |name: &str| name.ends_with(".safetensors");
        add(&mut self.base, listed(folder, &diffusion)?);
        add(&mut self.base, listed(&at("transformer"), &safetensors)?);
        for name in [
            "models_t5_umt5-xxl-enc-bf16.pth",
            "models_t5_umt5-xxl-enc-bf16.safetensors",
        ] {
            if self.text.is_empty() {
                add(&mut self.text, there(name));
            }
        }
        add(&mut self.text, listed(&at("text_encoder"), &safetensors)?);
        for name in [
            "google/umt5-xxl/tokenizer.json",
            "tokenizer/tokenizer.json",
            "tokenizer.json",
        ] {
            add(&mut self.tokenizer, there(name));
        }
        add(&mut self.vae, there("Wan2.1_VAE.pth"));
        add(&mut self.vae, listed(&at("vae"), &safetensors)?);
        for name in ["taew2_1.safetensors", "taew2_1.pth"] {
            if self.preview.is_empty() {
                add(&mut self.preview, there(name));
            }
        }
        // Released weights, in the folder or in one inside of it.
        for inside in [folder.to_path_buf(), at("models"), at("checkpoints")] {
            for path in listed(&inside, &|name| name.ends_with(".pt"))? {
                let adapter = path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().contains("lora"));
                add(if adapter { &mut self.lora } else { &mut self.released }, vec![path]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_as_people_have_them() {
        let scratch = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"x").unwrap();
            path
        };
        let wan = scratch.path().join("Wan2.1-T2V-1.3B");
        let base = put("Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors");
        let text = put("Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth");
        let tokenizer = put("Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json");
        let vae = put("Wan2.1-T2V-1.3B/Wan2.1_VAE.pth");
        let released = put("checkpoints/self_forcing_dmd.pt");

        let found = Files::find(std::slice::from_ref(&wan), Named::default()).unwrap();
        assert_eq!((found.transformer, found.text), (vec![base], vec![text.clone()]));
        assert_eq!((found.tokenizer, found.vae), (Some(tokenizer), vec![vae]));
        // Released weights win over the base beside them, in whatever order they come.
        for models in [
            [released.clone(), wan.clone()],
            [wan.clone(), scratch.path().join("checkpoints")],
        ] {
            let found = Files::find(&models, Named::default()).unwrap();
            assert_eq!(
                (&found.transformer, &found.text),
                (&vec![released.clone()], &vec![text.clone()])
            );
        }
        // Two are a question.
        let second = put("checkpoints/other.pt");
        let said = Files::find(&[scratch.path().join("checkpoints")], Named::default())
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("self_forcing_dmd.pt") && said.contains("other.pt") && said.contains("--model FILE"),
            "{said}"
        );
        let found = Files::find(&[scratch.path().join("checkpoints"), second.clone()], Named::default()).unwrap();
        assert_eq!(found.transformer, [second]);

        // LongLive's and diffusers' folders.
        let (long, lora) = (put("longlive/models/longlive_base.pt"), put("longlive/models/lora.pt"));
        let found = Files::find(&[scratch.path().join("longlive")], Named::default()).unwrap();
        assert_eq!((found.transformer, found.lora), (vec![long], Some(lora)));
        let shards = ["1", "2"].map(|i| {
            put(&format!(
                "diffusers/transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors"
            ))
        });
        let found = Files::find(&[scratch.path().join("diffusers")], Named::default()).unwrap();
        assert_eq!(found.transformer, shards);
        let said = format!(
            "{:#}",
            Files::find(&[scratch.path().join("nowhere")], Named::default()).unwrap_err()
        );
        assert!(said.contains("--model") && said.contains("nowhere"), "{said}");
    }
}
