//! A folder as people have it who downloaded a model: a checkpoint, text encoder, tokenizer, autoencoder and preview decoder,
//! with the real names and the real structure, tiny and random. What comes out of it are colors without a meaning; the way
//! there is the whole one.
//!
//! ```sh
//! cargo run --release --example tiny_model -- /tmp/tiny
//! cargo run --release -- generate --model /tmp/tiny/checkpoints/self_forcing_dmd.pt --model /tmp/tiny/Wan2.1-T2V-1.3B \
//!   --prompt "a cat in the rain" --size 64x48 --seconds 3
//! ```
//!
//! `--diffusers` behind the folder writes the same numbers in diffusers' layout, in shards; `--real` writes transformer and
//! autoencoders of Wan2.1-T2V-1.3B's sizes (3.1 GB), to see what a run takes.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use packforcing_video::RandomWeights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Extents of everything.
struct Sizes {
    width: usize,
    layers: usize,
    ffn: usize,
    frequencies: usize,
    text: usize,
    /// Channels of the autoencoder's last stage, and of the preview's four.
    base: usize,
    preview: [usize; 4],
}

const TINY: Sizes = Sizes {
    width: 64,
    layers: 2,
    ffn: 80,
    frequencies: 32,
    text: 32,
    base: 4,
    preview: [10, 6, 4, 4],
};
/// Those of Wan2.1-T2V-1.3B, and of taew2_1.
const REAL: Sizes = Sizes {
    width: 1536,
    layers: 30,
    ffn: 8960,
    frequencies: 256,
    text: 4096,
    base: 96,
    preview: [256, 128, 64, 64],
};
const VOCABULARY: usize = 64;
const LATENT: usize = 16;

type Named = Vec<(String, Vec<usize>)>;
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next();
    let folder = folder.map_or_else(|| std::env::temp_dir().join("packforcing-tiny-model"), PathBuf::from);
    match arguments.next().as_deref() {
        None => write(&folder),
        Some("--diffusers") => write_diffusers(&folder),
        Some("--real") => write_sizes(&folder, &REAL),
        Some(other) => Err(format!("{other}: --diffusers or --real is expected behind the folder").into()),
    }
}

/// Writes the folder: a released checkpoint, and Wan2.1's own.
pub fn write(folder: &Path) -> Fallible<()> {
    write_sizes(folder, &TINY)
}

fn write_sizes(folder: &Path, sizes: &Sizes) -> Fallible<()> {
    let wan = folder.join("Wan2.1-T2V-1.3B");
    for inside in [folder.join("checkpoints"), wan.join("google/umt5-xxl")] {
        std::fs::create_dir_all(inside)?;
    }
    let mut random = RandomWeights::new(1, DType::F32, &Device::Cpu)?;
    let mut file = |path: PathBuf, set: Option<&str>, front: &str, named: Named| -> Fallible<()> {
        let tensors = named
            .into_iter()
            .map(|(name, shape)| Ok((format!("{front}{name}"), numbers(&mut random, &name, &shape)?)));
        save(&path, set, tensors)?;
        println!("{}", path.display());
        Ok(())
    };
    file(
        folder.join("checkpoints/self_forcing_dmd.pt"),
        Some("generator_ema"),
        "model.",
        transformer(sizes),
    )?;
    file(
        wan.join("models_t5_umt5-xxl-enc-bf16.pth"),
        None,
        "",
        text_encoder(sizes),
    )?;
    file(wan.join("Wan2.1_VAE.pth"), None, "", autoencoder(sizes.base))?;
    file(wan.join("taew2_1.pth"), None, "", preview(sizes.preview))?;
    let path = wan.join("google/umt5-xxl/tokenizer.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&tokenizer())?)?;
    println!("{}", path.display());
    Ok(())
}

/// Writes the same numbers as a folder of diffusers: safetensors by other names, the larger ones in two shards.
pub fn write_diffusers(folder: &Path) -> Fallible<()> {
    let mut random = RandomWeights::new(1, DType::F32, &Device::Cpu)?;
    for (inside, stem, shards, named, renamed) in [
        (
            "transformer",
            "diffusion_pytorch_model",
            2,
            transformer(&TINY),
            transformer_name as fn(&str) -> String,
        ),
        ("text_encoder", "model", 2, text_encoder(&TINY), text_name),
        (
            "vae",
            "diffusion_pytorch_model",
            1,
            autoencoder(TINY.base),
            picture_name,
        ),
    ] {
        let inside = folder.join(inside);
        std::fs::create_dir_all(&inside)?;
        let tensors = named.iter().map(|(name, shape)| {
            let tensor = numbers(&mut random, name, shape)?.to_dtype(DType::BF16)?;
            Ok((renamed(name), tensor))
        });
        let tensors = tensors.collect::<Fallible<Vec<_>>>()?;
        for (number, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
            let name = match shards {
                1 => format!("{stem}.safetensors"),
                _ => format!("{stem}-{:05}-of-{shards:05}.safetensors", number + 1),
            };
            safetensors::serialize_to_file(part.to_vec(), None, &inside.join(name))?;
        }
        println!("{}", inside.display());
    }
    std::fs::create_dir_all(folder.join("tokenizer"))?;
    let path = folder.join("tokenizer/tokenizer.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&tokenizer())?)?;
    println!("{}", path.display());
    Ok(())
}

/// Every one of these parts of a name by the other.
fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
    pairs
        .iter()
        .fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

fn transformer_name(name: &str) -> String {
    let name = replaced(
        name,
        &[
            ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
            ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
            ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
            ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
            ("time_projection.1", "condition_embedder.time_proj"),
            ("head.head", "proj_out"),
            ("head.modulation", "scale_shift_table"),
            ("modulation", "scale_shift_table"),
            ("self_attn", "attn1"),
            ("cross_attn", "attn2"),
            ("norm3", "norm2"),
            ("ffn.0", "ffn.net.0.proj"),
            ("ffn.2", "ffn.net.2"),
        ],
    );
    replaced(
        &name,
        &[
            (".q.", ".to_q."),
            (".k.", ".to_k."),
            (".v.", ".to_v."),
            (".o.", ".to_out.0."),
        ],
    )
}

fn text_name(name: &str) -> String {
    match name {
        "token_embedding.weight" => "shared.weight".into(),
        "norm.weight" => "encoder.final_layer_norm.weight".into(),
        _ => replaced(
            name,
            &[
                ("blocks.", "encoder.block."),
                ("norm1", "layer.0.layer_norm"),
                (
                    "pos_embedding.embedding",
                    "layer.0.SelfAttention.relative_attention_bias",
                ),
                (".attn.", ".layer.0.SelfAttention."),
                ("norm2", "layer.1.layer_norm"),
                ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
                ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
                ("ffn.fc2", "layer.1.DenseReluDense.wo"),
            ],
        ),
    }
}

fn picture_name(name: &str) -> String {
    let mut name = replaced(
        name,
        &[
            ("residual.0.", "norm1."),
            ("residual.2.", "conv1."),
            ("residual.3.", "norm2."),
            ("residual.6.", "conv2."),
            ("shortcut", "conv_shortcut"),
            ("middle.0", "mid_block.resnets.0"),
            ("middle.1", "mid_block.attentions.0"),
            ("middle.2", "mid_block.resnets.1"),
            ("head.0", "norm_out"),
            ("head.2", "conv_out"),
            ("downsamples", "down_blocks"),
        ],
    );
    for (number, at) in (0..15).map(|n| (n, n / 4)).rev() {
        let of = match number % 4 {
            3 => format!("up_blocks.{at}.upsamplers.0."),
            place => format!("up_blocks.{at}.resnets.{place}."),
        };
        name = name.replace(&format!("upsamples.{number}."), &of);
    }
    for (from, to) in [
        ("encoder.conv1.", "encoder.conv_in."),
        ("decoder.conv1.", "decoder.conv_in."),
        ("conv1.", "quant_conv."),
        ("conv2.", "post_quant_conv."),
    ] {
        if let Some(rest) = name.strip_prefix(from) {
            return format!("{to}{rest}");
        }
    }
    name
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

fn transformer(sizes: &Sizes) -> Named {
    let &Sizes {
        width,
        layers,
        ffn,
        frequencies,
        text,
        ..
    } = sizes;
    let mut named: Named = vec![
        ("patch_embedding.weight".into(), vec![width, LATENT, 1, 2, 2]),
        ("patch_embedding.bias".into(), vec![width]),
        ("head.modulation".into(), vec![1, 2, width]),
    ];
    linear(&mut named, "text_embedding.0", text, width);
    linear(&mut named, "text_embedding.2", width, width);
    linear(&mut named, "time_embedding.0", frequencies, width);
    linear(&mut named, "time_embedding.2", width, width);
    linear(&mut named, "time_projection.1", width, 6 * width);
    linear(&mut named, "head.head", width, 4 * LATENT);
    for block in (0..layers).map(|n| format!("blocks.{n}")) {
        named.push((format!("{block}.modulation"), vec![1, 6, width]));
        for attention in ["self_attn", "cross_attn"] {
            for part in ["q", "k", "v", "o"] {
                linear(&mut named, &format!("{block}.{attention}.{part}"), width, width);
            }
            for norm in ["norm_q", "norm_k"] {
                named.push((format!("{block}.{attention}.{norm}.weight"), vec![width]));
            }
        }
        named.push((format!("{block}.norm3.weight"), vec![width]));
        named.push((format!("{block}.norm3.bias"), vec![width]));
        linear(&mut named, &format!("{block}.ffn.0"), width, ffn);
        linear(&mut named, &format!("{block}.ffn.2"), ffn, width);
    }
    named
}

fn text_encoder(sizes: &Sizes) -> Named {
    let text = sizes.text;
    let (heads, inner, hidden) = (4, 32, 64);
    let mut named: Named = vec![
        ("token_embedding.weight".into(), vec![VOCABULARY, text]),
        ("norm.weight".into(), vec![text]),
    ];
    for block in (0..2).map(|n| format!("blocks.{n}")) {
        for (part, shape) in [
            ("norm1", vec![text]),
            ("attn.q", vec![inner, text]),
            ("attn.k", vec![inner, text]),
            ("attn.v", vec![inner, text]),
            ("attn.o", vec![text, inner]),
            ("pos_embedding.embedding", vec![32, heads]),
            ("norm2", vec![text]),
            ("ffn.gate.0", vec![hidden, text]),
            ("ffn.fc1", vec![hidden, text]),
            ("ffn.fc2", vec![text, hidden]),
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

/// Wan2.1's, whose base is 96 channels.
fn autoencoder(base: usize) -> Named {
    let (two, four) = (2 * base, 4 * base);
    let mut named = Named::new();
    let all = &mut named;
    conv(all, "encoder.conv1", 3, base, &[3, 3, 3]);
    let down = "encoder.downsamples";
    for (number, from, to) in [
        (0, base, base),
        (1, base, base),
        (3, base, two),
        (4, two, two),
        (6, two, four),
        (7, four, four),
        (9, four, four),
        (10, four, four),
    ] {
        residual(all, &format!("{down}.{number}"), from, to);
    }
    for (number, channels, time) in [(2, base, false), (5, two, true), (8, four, true)] {
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
        (12, base, base),
        (13, base, base),
        (14, base, base),
    ] {
        residual(all, &format!("{up}.{number}"), from, to);
    }
    for (number, from, to, time) in [(3, four, two, true), (7, four, two, true), (11, two, base, false)] {
        conv(all, &format!("{up}.{number}.resample.1"), from, to, &[3, 3]);
        if time {
            conv(all, &format!("{up}.{number}.time_conv"), from, 2 * from, &[3, 1, 1]);
        }
    }
    all.push(("decoder.head.0.gamma".into(), vec![base, 1, 1, 1]));
    conv(all, "decoder.head.2", base, 3, &[3, 3, 3]);
    named
}

/// TAEHV's decoder.
fn preview(channels: [usize; 4]) -> Named {
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
fn save(path: &Path, set: Option<&str>, tensors: impl Iterator<Item = Fallible<(String, Tensor)>>) -> Fallible<()> {
    let mut zip = ZipWriter::new(std::fs::File::create(path)?);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut dictionary = vec![b'}'];
    for (number, named) in tensors.enumerate() {
        let (name, tensor) = named?;
        dictionary.extend([text(&name), rebuilt(number, tensor.dims()), b"s".to_vec()].concat());
        let numbers = tensor.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<half::bf16>()?;
        zip.start_file(format!("archive/data/{number}"), stored)?;
        zip.write_all(&numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    if let Some(set) = set {
        dictionary = [&b"}"[..], &text(set), &dictionary, b"s"].concat();
    }
    zip.start_file("archive/data.pkl", stored)?;
    zip.write_all(&[&b"\x80\x02"[..], &dictionary, b"."].concat())?;
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
