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
                false => found.file(model)?,
            }
        }
        // Shards that are named one by one are one model.
        found.given = sets(found.given.into_iter().flatten().collect())?;
        type Part = fn(Found) -> Candidates;
        let one = |what: &str, option: &str, named: Option<(PathBuf, Part)>, found: Candidates| {
            let found = match named {
                Some((named, part)) => candidates_in(&named, part)?,
                None => found,
            };
            match &found[..] {
                [] => Ok(Vec::new()),
                [only] => Ok(only.clone()),
                several => {
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
        let named_as = |named: Option<PathBuf>, part: Part| named.map(|named| (named, part));
        let lora = named_as(named.lora, |found| found.lora);
        let text = named_as(named.text, |found| found.text);
        let tokenizer = named_as(named.tokenizer, |found| found.tokenizer);
        let vae = named_as(named.vae, |found| found.vae);
        let preview = named_as(named.preview, |found| found.preview);
        Ok(Files {
            transformer: one("transformer", "--model FILE", None, transformer.unwrap_or_default())?,
            lora: single(one("adapter", "--lora", lora, found.lora)?),
            text: one("text encoder", "--text", text, found.text)?,
            tokenizer: single(one("tokenizer", "--tokenizer", tokenizer, found.tokenizer)?),
            vae: one("autoencoder", "--vae", vae, found.vae)?,
            preview: single(one("preview decoder", "--preview", preview, found.preview)?),
        })
    }
}

/// A file that was named for a part, or what a folder has of it: by the names that it has there, else its safetensors.
fn candidates_in(named: &Path, part: fn(Found) -> Candidates) -> Result<Candidates> {
    if !named.is_dir() {
        return Ok(vec![vec![named.to_path_buf()]]);
    }
    let mut found = Found::default();
    found.folder(named)?;
    let mut candidates = part(found);
    if candidates.is_empty() {
        candidates = sets(listed(named, &|name| name.ends_with(".safetensors"))?)?;
    }
    match candidates.is_empty() {
        true => bail!("{}: nothing of this part is in this folder", named.display()),
        false => Ok(candidates),
    }
}

/// Files that belong together: shards of one model, which must all be there; every other file by itself.
fn sets(files: Vec<PathBuf>) -> Result<Candidates> {
    let mut all: Vec<(PathBuf, usize, Vec<PathBuf>)> = Vec::new();
    for file in files {
        let name = file
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (stem, count) = shard_of(&name).unwrap_or((name, 1));
        let stem = file.with_file_name(stem);
        match all
            .iter_mut()
            .find(|(of, n, _)| (of, *n) == (&stem, count) && count > 1)
        {
            Some((_, _, shards)) => shards.push(file),
            None => all.push((stem, count, vec![file])),
        }
    }
    let mut candidates = Candidates::new();
    for (stem, count, mut shards) in all {
        shards.sort();
        shards.dedup();
        if shards.len() != count {
            bail!("{}: {} of its {count} shards are here", stem.display(), shards.len());
        }
        candidates.push(shards);
    }
    Ok(candidates)
}

/// Of `stem-00002-of-00005.ending`: `stem.ending` and 5.
fn shard_of(name: &str) -> Option<(String, usize)> {
    let (before, after) = name.split_once("-of-")?;
    let (stem, number) = before.rsplit_once('-')?;
    let (count, ending) = after.split_once('.')?;
    number.parse::<usize>().ok()?;
    Some((
        format!("{stem}.{ending}"),
        count.parse().ok().filter(|count| *count > 0)?,
    ))
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

/// One more candidate, unless it is there by this or by another path.
fn add(candidates: &mut Candidates, files: Vec<PathBuf>) {
    let whole = |files: &[PathBuf]| -> Vec<PathBuf> {
        let each = files
            .iter()
            .map(|file| file.canonicalize().unwrap_or_else(|_| file.clone()));
        each.collect()
    };
    if !files.is_empty() && !candidates.iter().any(|other| whole(other) == whole(&files)) {
        candidates.push(files);
    }
}

fn is_adapter(name: &str) -> bool {
    name.to_lowercase().contains("lora")
}

impl Found {
    /// A file says by its name which part it is; what says nothing is a transformer.
    fn file(&mut self, path: &Path) -> Result<()> {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        let part = match () {
            () if is_adapter(&name) => &mut self.lora,
            () if name.starts_with("t5") || ["umt5", "_t5", "-t5"].iter().any(|t5| name.contains(t5)) => &mut self.text,
            () if name.starts_with("tae") => &mut self.preview,
            () if name.contains("vae") => &mut self.vae,
            () if name == "tokenizer.json" => &mut self.tokenizer,
            () => {
                // An adapter that lies beside it may go with it.
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let adapter = |name: &str| is_adapter(name) && (name.ends_with(".pt") || name.ends_with(".pth"));
                for beside in listed(folder.unwrap_or(Path::new(".")), &adapter)? {
                    add(&mut self.lora, vec![beside]);
                }
                &mut self.given
            }
        };
        add(part, vec![path.to_path_buf()]);
        Ok(())
    }

    fn folder(&mut self, folder: &Path) -> Result<()> {
        let at = |name: &str| folder.join(name);
        let there = |name: &str| if at(name).is_file() { vec![at(name)] } else { Vec::new() };
        // Wan's own layout, and diffusers'.
        let diffusion = |name: &str| name.starts_with("diffusion_pytorch_model") && name.ends_with(".safetensors");
        let safetensors = |name: &str| name.ends_with(".safetensors");
        for set in sets(listed(folder, &diffusion)?)?
            .into_iter()
            .chain(sets(listed(&at("transformer"), &safetensors)?)?)
        {
            add(&mut self.base, set);
        }
        for name in [
            "models_t5_umt5-xxl-enc-bf16.pth",
            "models_t5_umt5-xxl-enc-bf16.safetensors",
        ] {
            if self.text.is_empty() {
                add(&mut self.text, there(name));
            }
        }
        for set in sets(listed(&at("text_encoder"), &safetensors)?)? {
            add(&mut self.text, set);
        }
        for name in [
            "google/umt5-xxl/tokenizer.json",
            "tokenizer/tokenizer.json",
            "tokenizer.json",
        ] {
            add(&mut self.tokenizer, there(name));
        }
        add(&mut self.vae, there("Wan2.1_VAE.pth"));
        for set in sets(listed(&at("vae"), &safetensors)?)? {
            add(&mut self.vae, set);
        }
        for name in ["taew2_1.safetensors", "taew2_1.pth"] {
            if self.preview.is_empty() {
                add(&mut self.preview, there(name));
            }
        }
        // Released weights, in the folder or in one inside of it.
        for inside in [folder.to_path_buf(), at("models"), at("checkpoints")] {
            for path in listed(&inside, &|name| name.ends_with(".pt"))? {
                let adapter = path.file_name().is_some_and(|name| is_adapter(&name.to_string_lossy()));
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
        // Shards named one by one, one that is missing, and another set of the same part.
        let named = Files::find(&shards, Named::default()).unwrap();
        assert_eq!(named.transformer, shards);
        std::fs::remove_file(&shards[1]).unwrap();
        let wrong = |name: &str| {
            let error = Files::find(&[scratch.path().join(name)], Named::default()).unwrap_err();
            format!("{error:#}")
        };
        let said = wrong("diffusers");
        assert!(said.contains("1 of its 2 shards"), "{said}");
        put("two/vae/diffusion_pytorch_model.safetensors");
        put("two/vae/diffusion_pytorch_model.fp16.safetensors");
        let said = wrong("two");
        assert!(
            said.contains("more than one autoencoder") && said.contains("--vae"),
            "{said}"
        );

        // An adapter beside the file, in whatever letters; a checkpoint that is no text encoder; a folder for a part.
        let (base, lora) = (put("a/longlive_base.pt"), put("a/LoRA.pt"));
        let found = Files::find(std::slice::from_ref(&base), Named::default()).unwrap();
        assert_eq!((found.transformer, found.lora), (vec![base], Some(lora)));
        let step = put("b/ckpt500.pt");
        let found = Files::find(std::slice::from_ref(&step), Named::default()).unwrap();
        assert_eq!(found.transformer, std::slice::from_ref(&step));
        let text = put("umt5-xxl/model.safetensors");
        let tokenizer = put("umt5-xxl/tokenizer.json");
        let folder = Some(scratch.path().join("umt5-xxl"));
        let named = Named {
            text: folder.clone(),
            tokenizer: folder,
            vae: Some(wan.clone()),
            ..Named::default()
        };
        let found = Files::find(&[step], named).unwrap();
        assert_eq!((found.text, found.tokenizer), (vec![text], Some(tokenizer)));
        assert_eq!(found.vae, [wan.join("Wan2.1_VAE.pth")]);
        let said = format!(
            "{:#}",
            Files::find(&[scratch.path().join("nowhere")], Named::default()).unwrap_err()
        );
        assert!(said.contains("--model") && said.contains("nowhere"), "{said}");
    }
}
