//! mp4 files with H.264 in them: Mozilla's `mp4parse` finds the frames, Cisco's `openh264` decodes them.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use mp4parse::{SampleEntry, Track, TrackType, VideoCodecSpecific};
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

use super::png::Image;

/// The frames of the first video, at most so many, each side at most of this extent.
pub fn frames(bytes: &[u8], most: usize, extent: usize) -> Result<Vec<Image>> {
    let file =
        mp4parse::read_mp4(&mut &bytes[..]).map_err(|e| anyhow::anyhow!("not an mp4 that can be read: {e:?}"))?;
    let track = file.tracks.iter().find(|track| track.track_type == TrackType::Video);
    let track = track.context("there is no video in it")?;
    let config = track.stsd.as_ref().and_then(|s| {
        s.descriptions.iter().find_map(|description| match description {
            SampleEntry::Video(video) => match &video.codec_specific {
                VideoCodecSpecific::AVCConfig(config) => Some(config),
                _ => None,
            },
            _ => None,
        })
    });
    let config = config.context("its video is not H.264 (ffmpeg -i IN -c:v libx264 OUT makes it so)")?;
    let config = Config::parse(config).context("its header is cut off")?;
    // A frame that is flushed before its turn is out of order, and B-frames are then refused.
    let in_order = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let decoder = Decoder::with_api_config(OpenH264API::from_source(), in_order);
    let mut decoder = decoder.context("no H.264 decoder")?;
    let mut frames = Vec::new();
    decoder.decode(&config.head).context("its header is broken")?;
    for (number, place) in places(track, most)?.into_iter().enumerate() {
        let broken = || format!("frame {number} is broken or cut off");
        let sample = bytes.get(place).with_context(broken)?;
        let units = config.units(sample).with_context(broken)?;
        if let Some(decoded) = decoder.decode(&units).with_context(broken)? {
            frames.push(image(&decoded, extent)?);
        }
    }
    // Frames that waited for later ones.
    for decoded in decoder.flush_remaining().context("its last frames are broken")? {
        frames.push(image(&decoded, extent)?);
    }
    ensure!(!frames.is_empty(), "there is no frame in it");
    Ok(frames)
}

/// Where frames lie in the file, in the order of decoding, at most so many.
fn places(track: &Track, most: usize) -> Result<Vec<Range<usize>>> {
    let (Some(runs), Some(chunks), Some(sizes)) = (&track.stsc, &track.stco, &track.stsz) else {
        bail!("it does not tell where its frames are");
    };
    let mut listed = sizes.sample_sizes.iter().copied();
    let mut runs = runs.samples.iter().peekable();
    let mut of_chunk = 0;
    let mut places = Vec::new();
    for (chunk, &from) in (1..).zip(chunks.offsets.iter()) {
        while let Some(run) = runs.next_if(|run| run.first_chunk <= chunk) {
            of_chunk = run.samples_per_chunk;
        }
        let mut from = usize::try_from(from)?;
        for _ in 0..of_chunk {
            let size = match sizes.sample_size {
                0 => listed.next(),
                same => Some(same),
            };
            let Some(size) = size.filter(|_| places.len() < most) else {
                return Ok(places);
            };
            let end = from.checked_add(size as usize).context("a frame has no end")?;
            places.push(from..end);
            from = end;
        }
    }
    Ok(places)
}

/// What a decoder must know before the first frame.
struct Config {
    /// Sequence and picture parameters, as a stream has them.
    head: Vec<u8>,
    /// Bytes of a unit's length.
    length_bytes: usize,
}

impl Config {
    /// `AVCDecoderConfigurationRecord` of ISO/IEC 14496-15: four bytes of profile, lengths' size less one, then both
    /// lists of parameter sets.
    fn parse(record: &[u8]) -> Option<Config> {
        let (fixed, mut rest) = record.split_at_checked(5)?;
        let mut head = Vec::new();
        for mask in [0x1f, 0xff] {
            let (count, mut sets) = rest.split_first()?;
            for _ in 0..count & mask {
                let (length, behind) = sets.split_first_chunk::<2>()?;
                let (set, behind) = behind.split_at_checked(u16::from_be_bytes(*length).into())?;
                head.extend(START);
                head.extend(set);
                sets = behind;
            }
            rest = sets;
        }
        Some(Config {
            head,
            length_bytes: usize::from(fixed[4] & 3) + 1,
        })
    }

    /// A file has lengths where a stream has start codes.
    fn units(&self, mut sample: &[u8]) -> Option<Vec<u8>> {
        let mut stream = Vec::new();
        while !sample.is_empty() {
            let (length, rest) = sample.split_at_checked(self.length_bytes)?;
            let length = length.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
            let (unit, rest) = rest.split_at_checked(length)?;
            stream.extend(START);
            stream.extend(unit);
            sample = rest;
        }
        Some(stream)
    }
}

/// Before each unit of a stream.
const START: [u8; 4] = [0, 0, 0, 1];

fn image(decoded: &DecodedYUV<'_>, extent: usize) -> Result<Image> {
    let (width, height) = decoded.dimensions();
    ensure!(
        (1..=extent).contains(&width) && (1..=extent).contains(&height),
        "{width} x {height} pixels (1 to {extent} a side are taken)"
    );
    let mut rgb = vec![0; 3 * width * height];
    decoded.write_rgb8(&mut rgb);
    Ok(Image { width, height, rgb })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    use mp4::{AvcConfig, Mp4Config, Mp4Sample, Mp4Writer, TrackConfig};
    use openh264::encoder::Encoder;
    use openh264::formats::{RgbSliceU8, YUVBuffer};

    const SIZE: (usize, usize) = (32, 24);

    fn shade(frame: usize) -> [u8; 3] {
        [40 + 20 * frame as u8, 200 - 20 * frame as u8, 90]
    }

    /// Frames of one color each.
    fn file(count: usize) -> Vec<u8> {
        let mut encoder = Encoder::new().unwrap();
        let mut samples = Vec::new();
        let (mut sequence, mut picture) = (Vec::new(), Vec::new());
        for frame in 0..count {
            let rgb = shade(frame).repeat(SIZE.0 * SIZE.1);
            let yuv = YUVBuffer::from_rgb8_source(RgbSliceU8::new(&rgb, SIZE));
            let stream = encoder.encode(&yuv).unwrap().to_vec();
            let mut sample = Vec::new();
            for nal in openh264::nal_units(&stream) {
                let nal = &nal[nal.iter().position(|&b| b == 1).unwrap() + 1..];
                match nal[0] & 0x1f {
                    7 => sequence = nal.to_vec(),
                    8 => picture = nal.to_vec(),
                    _ => {
                        sample.extend((nal.len() as u32).to_be_bytes());
                        sample.extend(nal);
                    }
                }
            }
            samples.push(sample);
        }
        let config = Mp4Config {
            major_brand: "isom".parse().unwrap(),
            minor_version: 512,
            compatible_brands: vec!["isom".parse().unwrap(), "avc1".parse().unwrap()],
            timescale: 1000,
        };
        let mut writer = Mp4Writer::write_start(Cursor::new(Vec::new()), &config).unwrap();
        let avc = AvcConfig {
            width: SIZE.0 as u16,
            height: SIZE.1 as u16,
            seq_param_set: sequence,
            pic_param_set: picture,
        };
        let track = TrackConfig {
            track_type: mp4::TrackType::Video,
            timescale: 1000,
            language: "und".into(),
            media_conf: mp4::MediaConfig::AvcConfig(avc),
        };
        writer.add_track(&track).unwrap();
        for (i, bytes) in samples.into_iter().enumerate() {
            let sample = Mp4Sample {
                start_time: 125 * i as u64,
                duration: 125,
                rendering_offset: 0,
                is_sync: i == 0,
                bytes: bytes.into(),
            };
            writer.write_sample(1, &sample).unwrap();
        }
        writer.write_end().unwrap();
        writer.into_writer().into_inner()
    }

    #[test]
    fn frames_come_back() {
        let bytes = file(6);
        let got = frames(&bytes, 100, 4096).unwrap();
        assert_eq!(got.len(), 6);
        for (number, image) in got.iter().enumerate() {
            assert_eq!((image.width, image.height), SIZE);
            let far = image
                .rgb
                .chunks(3)
                .flat_map(|p| p.iter().zip(shade(number)).map(|(a, b)| a.abs_diff(b)))
                .max();
            assert!(far.is_some_and(|far| far < 12), "frame {number}: {far:?}");
        }
        assert_eq!(frames(&bytes, 4, 4096).unwrap().len(), 4);
    }

    /// By x264: gray that grows lighter; two of three frames are B-frames, stored behind those that they lie before.
    #[test]
    fn frames_come_in_the_order_of_time() {
        let got = frames(include_bytes!("../../tests/data/b_frames.mp4"), 100, 4096).unwrap();
        let red: Vec<u8> = got.iter().map(|image| image.rgb[0]).collect();
        assert_eq!(red.len(), 12);
        assert!(red.windows(2).all(|two| two[0] < two[1]), "{red:?}");
    }

    #[test]
    fn what_is_broken_is_refused() {
        let bytes = file(6);
        for end in [9, bytes.len() / 4, bytes.len() - 1] {
            assert!(frames(&bytes[..end], 100, 4096).is_err(), "{end} bytes");
        }
        assert!(frames(&bytes, 100, 31).is_err(), "too wide");
    }

    /// Any one or two bytes changed, any part cut off: an error or frames, never a panic.
    #[test]
    fn damaged_files_are_refused_or_hold_together() {
        let whole = file(4);
        proptest::proptest!(proptest::prelude::ProptestConfig::with_cases(3000), |(
            changes in proptest::collection::vec((0..whole.len(), proptest::num::u8::ANY), 0..3),
            end in 0..2 * whole.len(),
        )| {
            let mut bytes = whole.clone();
            changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
            bytes.truncate(end);
            if let Ok(frames) = frames(&bytes, 100, 4096) {
                assert!(frames.iter().all(|f| f.rgb.len() == 3 * f.width * f.height));
            }
        });
    }
}
