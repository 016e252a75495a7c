//! A folder as people have it who downloaded a model: a checkpoint, text encoder, tokenizer, autoencoder and preview decoder,
//! with the real names and the real structure, tiny and random. What comes out of it are colors without a meaning; the way
//! there is the whole one.
//!
//! ```sh
//! cargo run --release --example tiny_model -- /tmp/tiny
//! cargo run --release -- generate --model /tmp/tiny/checkpoints/self_forcing_dmd.pt --model /tmp/tiny/Wan2.1-T2V-1.3B \
//!   --prompt "a cat in the rain" --size 64x48 --seconds 3
//! ```

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use packforcing_video::RandomWeights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Extents of everything.
const WIDTH: usize = 64;
const LAYERS: usize = 2;
const FFN: usize = 80;
const FREQUENCIES: usize = 32;
const TEXT: usize = 32;
const VOCABULARY: usize = 64;
const LATENT: usize = 16;

type Named = Vec<(String, Vec<usize>)>;
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let folder = std::env::args()
        .nth(1)
        .map_or_else(|| std::env::temp_dir().join("packforcing-tiny-model"), PathBuf::from);
    write(&folder)
}

/// Writes the folder.
pub fn write(folder: &Path) -> Fallible<()> {
    let wan = folder.join("Wan2.1-T2V-1.3B");
    for inside in [folder.join("checkpoints"), wan.join("google/umt5-xxl")] {
        std::fs::create_dir_all(inside)?;
    }
    let mut random = RandomWeights::new(1, DType::F32, &Device::Cpu)?;
    let mut file = |path: PathBuf, set: Option<&str>, front: &str, named: Named| -> Fallible<()> {
        let tensors = named
            .into_iter()
            .map(|(name, shape)| Ok((format!("{front}{name}"), numbers(&mut random, &name, &shape)?)));
        save(&path, set, tensors.collect::<Fallible<Vec<_>>>()?)?;
        println!("{}", path.display());
        Ok(())
    };
    file(
        folder.join("checkpoints/self_forcing_dmd.pt"),
        Some("generator_ema"),
        "model.",
        transformer(),
    )?;
    file(wan.join("models_t5_umt5-xxl-enc-bf16.pth"), None, "", text_encoder())?;
    file(wan.join("Wan2.1_VAE.pth"), None, "", autoencoder())?;
    file(wan.join("taew2_1.pth"), None, "", preview())?;
    let path = wan.join("google/umt5-xxl/tokenizer.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&tokenizer())?)?;
    println!("{}", path.display());
    Ok(())
}

/// Weights that keep the size of what goes through them; gains of norms are 1, and what is added is 0.
fn numbers(random: &mut RandomWeights, name: &str, shape: &[usize]) -> Fallible<Tensor> {
    let fan_in: usize = shape.iter().skip(1).product();
    Ok(match () {
        () if name.ends_with("gamma") || name.contains("norm") && name.ends_with("weight") => {
            Tensor::ones(shape, DType::F32, &Device::Cpu)?
        }
        () if name.ends_with("bias") => Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
        () if name.ends_with("modulation") => random.normal(shape, 0.1)?,
        () => random.normal(shape, (fan_in.max(1) as f64).sqrt().recip())?,
    })
}

fn linear(named: &mut Named, name: &str, from: usize, to: usize) {
    named.push((format!("{name}.weight"), vec![to, from]));
    named.push((format!("{name}.bias"), vec![to]));
}

fn transformer() -> Named {
    let mut named: Named = vec![
        ("patch_embedding.weight".into(), vec![WIDTH, LATENT, 1, 2, 2]),
        ("patch_embedding.bias".into(), vec![WIDTH]),
        ("head.modulation".into(), vec![1, 2, WIDTH]),
    ];
    linear(&mut named, "text_embedding.0", TEXT, WIDTH);
    linear(&mut named, "text_embedding.2", WIDTH, WIDTH);
    linear(&mut named, "time_embedding.0", FREQUENCIES, WIDTH);
    linear(&mut named, "time_embedding.2", WIDTH, WIDTH);
    linear(&mut named, "time_projection.1", WIDTH, 6 * WIDTH);
    linear(&mut named, "head.head", WIDTH, 4 * LATENT);
    for block in (0..LAYERS).map(|n| format!("blocks.{n}")) {
        named.push((format!("{block}.modulation"), vec![1, 6, WIDTH]));
        for attention in ["self_attn", "cross_attn"] {
            for part in ["q", "k", "v", "o"] {
                linear(&mut named, &format!("{block}.{attention}.{part}"), WIDTH, WIDTH);
            }
            for norm in ["norm_q", "norm_k"] {
                named.push((format!("{block}.{attention}.{norm}.weight"), vec![WIDTH]));
            }
        }
        named.push((format!("{block}.norm3.weight"), vec![WIDTH]));
        named.push((format!("{block}.norm3.bias"), vec![WIDTH]));
        linear(&mut named, &format!("{block}.ffn.0"), WIDTH, FFN);
        linear(&mut named, &format!("{block}.ffn.2"), FFN, WIDTH);
    }
    named
}

fn text_encoder() -> Named {
    let (heads, inner, hidden) = (4, 32, 64);
    let mut named: Named = vec![
        ("token_embedding.weight".into(), vec![VOCABULARY, TEXT]),
        ("norm.weight".into(), vec![TEXT]),
    ];
    for block in (0..2).map(|n| format!("blocks.{n}")) {
        for (part, shape) in [
            ("norm1", vec![TEXT]),
            ("attn.q", vec![inner, TEXT]),
            ("attn.k", vec![inner, TEXT]),
            ("attn.v", vec![inner, TEXT]),
            ("attn.o", vec![TEXT, inner]),
            ("pos_embedding.embedding", vec![32, heads]),
            ("norm2", vec![TEXT]),
            ("ffn.gate.0", vec![hidden, TEXT]),
            ("ffn.fc1", vec![hidden, TEXT]),
            ("ffn.fc2", vec![TEXT, hidden]),
        ] {
            named.push((format!("{block}.{part}.weight"), shape));
        }
    }
    named
}

fn conv(named: &mut Named, name: &str, from: usize, to: usize, kernel: &[usize]) {
    named.push((format!("{name}.weight"), [&[to, from][..], kernel].concat()));
    named.push((format!("{name}.bias"), vec![to]));
}

fn residual(named: &mut Named, name: &str, from: usize, to: usize) {
    named.push((format!("{name}.residual.0.gamma"), vec![from, 1, 1, 1]));
    conv(named, &format!("{name}.residual.2"), from, to, &[3, 3, 3]);
    named.push((format!("{name}.residual.3.gamma"), vec![to, 1, 1, 1]));
    conv(named, &format!("{name}.residual.6"), to, to, &[3, 3, 3]);
    if from != to {
        conv(named, &format!("{name}.shortcut"), from, to, &[1, 1, 1]);
    }
}

fn middle(named: &mut Named, name: &str, channels: usize) {
    residual(named, &format!("{name}.0"), channels, channels);
    named.push((format!("{name}.1.norm.gamma"), vec![channels, 1, 1]));
    conv(named, &format!("{name}.1.to_qkv"), channels, 3 * channels, &[1, 1]);
    conv(named, &format!("{name}.1.proj"), channels, channels, &[1, 1]);
    residual(named, &format!("{name}.2"), channels, channels);
}

/// Wan2.1's with a base of 4 channels in place of 96.
fn autoencoder() -> Named {
    const BASE: usize = 4;
    let (two, four) = (2 * BASE, 4 * BASE);
    let mut named = Named::new();
    let all = &mut named;
    conv(all, "encoder.conv1", 3, BASE, &[3, 3, 3]);
    let down = "encoder.downsamples";
    for (number, from, to) in [
        (0, BASE, BASE),
        (1, BASE, BASE),
        (3, BASE, two),
        (4, two, two),
        (6, two, four),
        (7, four, four),
        (9, four, four),
        (10, four, four),
    ] {
        residual(all, &format!("{down}.{number}"), from, to);
    }
    for (number, channels, time) in [(2, BASE, false), (5, two, true), (8, four, true)] {
        conv(all, &format!("{down}.{number}.resample.1"), channels, channels, &[3, 3]);
        if time {
            conv(
                all,
                &format!("{down}.{number}.time_conv"),
                channels,
                channels,
                &[3, 1, 1],
            );
        }
    }
    middle(all, "encoder.middle", four);
    all.push(("encoder.head.0.gamma".into(), vec![four, 1, 1, 1]));
    conv(all, "encoder.head.2", four, 2 * LATENT, &[3, 3, 3]);
    conv(all, "conv1", 2 * LATENT, 2 * LATENT, &[1, 1, 1]);
    conv(all, "conv2", LATENT, LATENT, &[1, 1, 1]);
    conv(all, "decoder.conv1", LATENT, four, &[3, 3, 3]);
    middle(all, "decoder.middle", four);
    let up = "decoder.upsamples";
    for (number, from, to) in [
        (0, four, four),
        (1, four, four),
        (2, four, four),
        (4, two, four),
        (5, four, four),
        (6, four, four),
        (8, two, two),
        (9, two, two),
        (10, two, two),
        (12, BASE, BASE),
        (13, BASE, BASE),
        (14, BASE, BASE),
    ] {
        residual(all, &format!("{up}.{number}"), from, to);
    }
    for (number, from, to, time) in [(3, four, two, true), (7, four, two, true), (11, two, BASE, false)] {
        conv(all, &format!("{up}.{number}.resample.1"), from, to, &[3, 3]);
        if time {
            conv(all, &format!("{up}.{number}.time_conv"), from, 2 * from, &[3, 1, 1]);
        }
    }
    all.push(("decoder.head.0.gamma".into(), vec![BASE, 1, 1, 1]));
    conv(all, "decoder.head.2", BASE, 3, &[3, 3, 3]);
    named
}

/// TAEHV's decoder with few channels.
fn preview() -> Named {
    let channels = [10, 6, 4, 4];
    let mut named = Named::new();
    conv(&mut named, "decoder.1", LATENT, channels[0], &[3, 3]);
    for (stage, frames) in [1, 2, 2].into_iter().enumerate() {
        let (c, begin) = (channels[stage], 3 + 6 * stage);
        for block in begin..begin + 3 {
            conv(&mut named, &format!("decoder.{block}.conv.0"), 2 * c, c, &[3, 3]);
            conv(&mut named, &format!("decoder.{block}.conv.2"), c, c, &[3, 3]);
            conv(&mut named, &format!("decoder.{block}.conv.4"), c, c, &[3, 3]);
        }
        named.push((format!("decoder.{}.conv.weight", begin + 4), vec![frames * c, c, 1, 1]));
        named.push((
            format!("decoder.{}.weight", begin + 5),
            vec![channels[stage + 1], c, 3, 3],
        ));
    }
    conv(&mut named, "decoder.22", channels[3], 3, &[3, 3]);
    named
}

/// Letters, as a Unigram model with T5's marks.
fn tokenizer() -> serde_json::Value {
    let letters = ('a'..='z').map(|letter| (letter.to_string(), -4.0));
    let words = [
        ("<pad>".to_string(), 0.0),
        ("</s>".into(), 0.0),
        ("<unk>".into(), 0.0),
        ("\u{2581}".into(), -3.0),
    ];
    let vocabulary: Vec<(String, f64)> = words.into_iter().chain(letters).collect();
    let mark = |id: u32, content: &str| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        })
    };
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [mark(0, "<pad>"), mark(1, "</s>"), mark(2, "<unk>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
        },
        "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false}
    })
}

/// A file of `torch.save`: a zip with a pickle and the storages that it names, bf16. Tensors lie in a dictionary of this name,
/// or at the top.
fn save(path: &Path, set: Option<&str>, tensors: Vec<(String, Tensor)>) -> Fallible<()> {
    let mut zip = ZipWriter::new(std::fs::File::create(path)?);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut dictionary = vec![b'}'];
    let mut storages = HashMap::new();
    for (number, (name, tensor)) in tensors.into_iter().enumerate() {
        dictionary.extend([text(&name), rebuilt(number, tensor.dims()), b"s".to_vec()].concat());
        let numbers = tensor.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<half::bf16>()?;
        storages.insert(
            number,
            numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>(),
        );
    }
    if let Some(set) = set {
        dictionary = [&b"}"[..], &text(set), &dictionary, b"s"].concat();
    }
    zip.start_file("archive/data.pkl", stored)?;
    zip.write_all(&[&b"\x80\x02"[..], &dictionary, b"."].concat())?;
    for number in 0..storages.len() {
        zip.start_file(format!("archive/data/{number}"), stored)?;
        zip.write_all(&storages[&number])?;
    }
    zip.finish()?;
    Ok(())
}

/// A text in a pickle.
fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A number in a pickle.
fn number(n: usize) -> Vec<u8> {
    [&b"\x8a\x08"[..], &(n as u64).to_le_bytes()].concat()
}

/// A tensor in a pickle: the call that torch makes for one, over storage `key`.
fn rebuilt(key: usize, shape: &[usize]) -> Vec<u8> {
    let tuple = |numbers: &[usize]| {
        [
            &b"("[..],
            &numbers.iter().flat_map(|n| number(*n)).collect::<Vec<u8>>(),
            b"t",
        ]
        .concat()
    };
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nBFloat16Storage\n".to_vec(),
        text(&key.to_string()),
        text("cpu"),
        number(shape.iter().product()),
        b"tQ".to_vec(),
        number(0),
        tuple(shape),
        tuple(&strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}
